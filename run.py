"""One cell of an experiment, or with -m a sweep of them."""

import sys

import hydra
from omegaconf import DictConfig

from topi.bench.runs.launch import exit_code, run_point


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose, check, run."""
    run_point(config)


if __name__ == "__main__":
    sys.exit(exit_code(main))
