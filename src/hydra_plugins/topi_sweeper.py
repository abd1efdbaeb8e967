"""Hydra's own sweeper for a union of grids; it looks at every point before the first one runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

Axes = Mapping[str, Any]


def points(
    params: Axes | None, grids: Mapping[str, Axes | None] | None, arguments: Sequence[str] = ()
) -> list[list[str]]:
    """The points of a sweep, each as its overrides: the union of the grids, every point once.

    Args:
        params: axes that all grids share, each with its values as on the command line, "1,2".
        grids: further axes by the grid's name; without any, `params` are the only grid.
        arguments: overrides of the command line; they replace the axes of the same name.

    Returns:
        The points in the order of the grids, but all points of a model in a row, so that it is
        loaded once.
    """
    parser = OverridesParser.create()
    found: dict[tuple[str, ...], None] = {}
    for grid in (grids or {"": {}}).values():
        if grid is not None:
            axes = [f"{key}={value}" for key, value in {**(params or {}), **grid}.items()]
            parsed = parser.parse_overrides([*axes, *arguments])
            (batch,) = BasicSweeper.split_arguments(parsed, None)
            found |= dict.fromkeys(map(tuple, batch))
    models = list(dict.fromkeys(_model(point) for point in found))
    return [list(point) for point in sorted(found, key=lambda p: models.index(_model(p)))]


def _model(point: Sequence[str]) -> str | None:
    return next((override for override in point if override.startswith("model=")), None)


class CheckedSweeper(BasicSweeper):
    """Sweeps `points`; refuses the sweep before it starts if one of them is impossible.

    A sweep that has ended without failures prints its table and writes the page of its store.

    Args:
        max_batch_size: points that are checked and handed to the launcher at once; null: all.
        params: see `points`.
        grids: see `points`.
        names: what grids may refer to, as `${hydra.sweeper.names.both}`; `conf/size` sets it.
        report: folder of the page; null: no table and no page.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Axes | None = None,
        grids: Mapping[str, Axes | None] | None = None,
        names: Mapping[str, str] | None = None,
        report: str | None = None,
    ) -> None:
        super().__init__(max_batch_size)
        self.shared, self.grids, self.report = params, grids, report
        self.labels: dict[str, set[str]] = {}

    def sweep(self, arguments: list[str]) -> Any:
        """Run the points; then show their results, unless they were shards or jobs of a cluster."""
        returned = super().sweep(arguments)
        slurm = self.config.hydra.launcher._target_.endswith("SlurmLauncher")
        if self.report and not slurm and self.config.shard is None:
            from topi.bench.cli.sweep_end import show_sweep

            show_sweep(self.config.store, self.labels, self.report)
        return returned

    def split_arguments(
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The points in batches."""
        arguments = [override.input_line for override in overrides]
        every = points(self.shared, self.grids, arguments)
        return list(self.split_overrides_to_chunks(every, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose and check every point.

        Raises:
            ConfigError: a point is impossible.
        """
        from topi.bench.config.schema import read_config
        from topi.bench.runs.assemble import build_method, check
        from topi.bench.runs.identify import label_of

        for overrides in batch:
            point = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            config = read_config(point)
            check(config)
            label = label_of(config, build_method(config))
            self.labels.setdefault(config.model["name"], set()).add(label)
