"""Which method, and how far to turn it: a small calibrated sweep and a proposal, `topi tune`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hydra_plugins.topi_sweeper import points
from topi.bench.config.compose import composed
from topi.bench.config.schema import ConfigError, check_choice, read_config
from topi.bench.io.escape import csv
from topi.bench.io.names import file_name
from topi.bench.report.drawing.plots import save
from topi.bench.report.paper.suite import best_suites, suites
from topi.bench.report.pareto import on_front, pareto, pareto_points, speed_of
from topi.bench.results.files import write_text
from topi.bench.results.store import Store
from topi.errors import ToPiError

log = logging.getLogger(__name__)

SAMPLES = 8  # two of each category


@dataclass(frozen=True)
class Proposal:
    """What was decided, and from what.

    Args:
        label: of the proposed cell.
        overrides: what makes `run.py` run it.
        curve: every setting that ran, fastest last; `front` marks those that no other beats.
        speed: the column of the curve that was decided by.
        files: the curve as CSV and its figure.
    """

    label: str
    overrides: tuple[str, ...]
    curve: pd.DataFrame
    speed: str
    files: tuple[Path, ...] = ()


def choose(
    curve: pd.DataFrame, speed: str, min_psnr: float | None = None, min_speed: float | None = None
) -> str:
    """The label of the fastest setting that is good enough, or of the best that is fast enough.

    Good enough is a setting whose 95 % interval of the mean PSNR lies at `min_psnr` or above.

    Args:
        curve: one line per setting with `label, psnr, psnr_low` and the column `speed`.

    Raises:
        ToPiError: no setting is, or not just one of the two limits is given.
    """
    if (min_psnr is None) == (min_speed is None):
        raise ToPiError("Give one of --min-psnr and --speed.")
    if min_psnr is not None:
        limit, by, then = "psnr_low", speed, "psnr"
        enough = curve[curve["psnr_low"] >= min_psnr]
        want = f"{min_psnr:g} dB with the lower end of its interval"
    else:
        limit, by, then = speed, "psnr", speed
        enough = curve[curve[speed] >= min_speed]
        want = f"a speed-up of {min_speed:g}"
    if not len(enough):
        nearest = curve.sort_values(limit).iloc[-1]
        raise ToPiError(
            f"No setting reaches {want}; the nearest is {nearest['label']} with "
            f"{nearest['psnr']:.2f} dB [{nearest['psnr_low']:.2f}, {nearest['psnr_high']:.2f}] at "
            f"{nearest[speed]:.2f}x."
        )
    return enough.sort_values([by, then], kind="stable")["label"].iloc[-1]


def tune(
    overrides: Sequence[str],
    min_psnr: float | None = None,
    min_speed: float | None = None,
    only: Collection[str] = (),
    samples: int = SAMPLES,
) -> Proposal:
    """Run `experiment=pareto` on a few samples of the calibration split and choose.

    The cells are in `<store>/tune`, so that a killed run goes on and another limit costs nothing.

    Args:
        overrides: as for `run.py`; the model has to be among them.
        min_psnr, min_speed: one of them, see `choose`.
        only: names of methods and caches to try; none: all. A stack needs both of its names.
        samples: to run, unless `data.count` is among the overrides.

    Raises:
        ToPiError: the configuration is impossible, or no setting is good or fast enough.
    """
    from topi.bench.runs.assemble import build_method, check  # loads torch
    from topi.bench.runs.compute import run
    from topi.bench.runs.identify import label_of

    if (min_psnr is None) == (min_speed is None):
        raise ToPiError("Give one of --min-psnr and --speed.")
    cells, root = {}, ""
    for point in settings(overrides, only, samples):
        try:
            config = read_config(composed(point))
            check(config)
            label = label_of(config, build_method(config))
            run(config, "tune")
        except ConfigError as error:
            log.warning("left out: %s", error)
        else:
            cells[label], root = point, config.store
    if not cells:
        raise ToPiError("No setting could be run on this model; the log says why.")
    store = Store(Path(root))
    (suite,) = best_suites(suites(store), cells)
    curve = pareto_points(suite)
    curve = curve[(curve["category"] == "all") & curve["label"].isin(cells)]
    speed = speed_of(curve).name
    curve = curve.assign(front=on_front(curve[speed], curve["psnr"])).sort_values(speed)
    table, figure = store.root / f"{file_name(suite.model)}.csv", pareto(store, [suite])
    write_text(table, csv(curve))
    drawn = save(figure, store.root / "figures", suite.model) if figure else None
    label = choose(curve, speed, min_psnr, min_speed)
    own = tuple(word for word in cells[label] if word.startswith(("method", "cache", *AXES)))
    files = (table, *([drawn] if drawn else []))
    return Proposal(label, own, curve, speed, files)


AXES = ("tau=", "ratio=")


def settings(overrides: Sequence[str], only: Collection[str], samples: int) -> list[list[str]]:
    """The points of `experiment=pareto` that are to be tried, each as its overrides.

    Raises:
        ConfigError: no model is named, or a name in `only` is unknown.
    """
    from topi.methods import CACHES, METHODS  # loads torch

    for name in only:
        check_choice("--only", name, [*METHODS, *CACHES])
    given = {override.partition("=")[0] for override in overrides}
    if "model" not in given:
        raise ConfigError("Name the model to tune for: topi tune model=kontext_standin ...")
    common = [o for o in overrides if not o.startswith(("method.", "cache."))]  # of some points
    base = composed(["experiment=pareto", *common], hydra=True)
    small = {"data.split": "calibration", "data.count": samples, "logger": "none"}
    small |= {"latency.samples": 2, "latency.repeats": 2, "store": f"{base.store}/tune"}
    extra = [
        f"{name}={value}"
        for name, value in small.items()
        if name == "store" or (name not in given and (name[:5] != "data." or name[5:] in base.data))
    ]
    kept = [override for override in overrides if not override.startswith("store=")]
    sweeper = base.hydra.sweeper
    swept = points(sweeper.params, sweeper.grids, ["experiment=pareto", *kept, *extra])
    return [point for point in swept if not only or parts(point) <= set(only)]


def parts(point: Iterable[str]) -> set[str]:
    """The method and the cache of a point; full context and no cache are none."""
    named = dict(override.partition("=")[::2] for override in point)
    return {named["method"], named.get("cache", "none")} - {"full", "none"}
