"""Hydra's own sweeper, with a look at every point before the first one runs."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class CheckedSweeper(BasicSweeper):
    """Refuses a sweep with an impossible point before any of its points runs or is submitted."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose and check every point.

        Raises:
            ConfigError: a point is impossible.
        """
        from topi.config import read_config
        from topi.experiment import check

        for overrides in batch:
            point = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            check(read_config(point))
