"""Train a stand-in: `python -m topi.bench.standins model=kontext_standin schedule=cpu`."""

import sys

import hydra
from omegaconf import DictConfig

from topi.bench.config.schema import conf_folder
from topi.bench.runs.launch import exit_code


@hydra.main(version_base="1.3", config_path=str(conf_folder() / "training"), config_name="config")
def main(composed: DictConfig) -> None:
    """Compose, check, train."""
    from topi.bench.standins.run import train  # loads torch, which --help need not
    from topi.bench.standins.training_config import read_training

    train(read_training(composed))


if __name__ == "__main__":
    sys.exit(exit_code(main))
