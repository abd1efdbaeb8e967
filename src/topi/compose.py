"""The configuration files of the checkout, composed outside `run.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from topi.config import ConfigError, conf_folder
from topi.launch import explain


def composed(overrides: Sequence[str] = (), hydra: bool = False) -> DictConfig:
    """What `run.py` would get for these overrides.

    Args:
        hydra: with Hydra's own settings under `hydra`.

    Raises:
        ToPiError: an override is impossible, or there are no configuration files.
    """
    with refusals(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
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
