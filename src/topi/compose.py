"""The configuration files of the checkout, composed outside `run.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from topi.config import ConfigError
from topi.errors import ToPiError
from topi.launch import explain

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(overrides: Sequence[str] = (), hydra: bool = False) -> DictConfig:
    """What `run.py` would get for these overrides.

    Args:
        hydra: with Hydra's own settings under `hydra`.

    Raises:
        ToPiError: an override is impossible, or there are no configuration files.
    """
    if not CONF.is_dir():
        raise ToPiError(
            f"There is no {CONF}: this command runs from a checkout that was installed with "
            "`make setup`."
        )
    with refusals(), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what Hydra says of an override into one sentence.

    Raises:
        ConfigError: instead of an error of Hydra or OmegaConf.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
