"""Offline calibration: the layers with the highest attention to the references (section 4.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.results import files
from topi.bench.results.calibration_file import Calibration, Curves, Stability, write_calibration
from topi.bench.runs.resume import Row, collect
from topi.bench.studies.observation import observe, origin_of, stack

TOP = 3  # M of Eq. 5: both published sets have three layers
SUBSETS = 100


def calibrate(
    editor: Editor,
    data: Sequence[EditSample],
    seed: int = 0,
    top: int = TOP,
    more: Mapping[str, Any] | None = None,
    rows: Path | None = None,
    subsets: int = SUBSETS,
) -> Calibration:
    """Run the unmodified editor over `data` and rank its layers by context sensitivity.

    Args:
        seed: of the first sample's noise; each sample has its own, `seed` + its index.
        top: M of Eq. 5.
        more: more fields of the result's origin.
        rows: a file that keeps the finished samples, so that a killed run continues there.
        subsets: bootstrap subsets that show how stable the choice is.
    """

    def row_of(index: int, sample: EditSample) -> Row:
        mass = stack(observe(editor, sample, seed + index).mass)
        return {
            "seed": seed + index,
            "by_layer": list(_rounded(mass.mean((0, 1)))),
            "by_step": list(_rounded(mass.mean((0, 2)))),
        }

    done = collect(data, row_of, f"calibrating {editor.name}", rows)
    return summarise(done, top, subsets, origin_of(editor, seed) | dict(more or {}))


def summarise(
    rows: Sequence[Row], top: int = TOP, subsets: int = SUBSETS, origin: Mapping | None = None
) -> Calibration:
    """Eq. 4 and 5 over the rows of all samples and of each category, and how stable they are.

    Args:
        rows: with `category`, `by_layer` [L] and `by_step` [steps] of each sample.
        top: M of Eq. 5.
        subsets: bootstrap subsets.
        origin: see `Calibration`.
    """
    by_category: dict[str, list[Row]] = {}
    for row in rows:
        by_category.setdefault(row["category"], []).append(row)
    return Calibration(
        overall=_curves(rows, top),
        by_category={name: _curves(each, top) for name, each in sorted(by_category.items())},
        stability=stability(
            [np.array([row["by_layer"] for row in each]) for each in by_category.values()],
            top,
            subsets,
        ),
        samples=tuple(dict(row) for row in rows),
        origin=dict(origin or {}),
    )


def top_layers(by_layer: Sequence[float] | np.ndarray, top: int = TOP) -> tuple[int, ...]:
    """Eq. 5: the `top` layers of highest sensitivity, ascending; ties go to the lower layer."""
    ranked = np.argsort(-np.asarray(by_layer), kind="stable")
    return tuple(sorted(ranked[:top].tolist()))


def stability(
    strata: Sequence[np.ndarray], top: int = TOP, subsets: int = SUBSETS, seed: int = 0
) -> Stability:
    """Choose the layers again on bootstrap subsets of the samples.

    Args:
        strata: of each category, S of each sample and layer [n, L]; a subset has n of each, unless
            a category has one sample, which could only be drawn again.
        top: M of Eq. 5.
        subsets: how many.
        seed: of the draw.
    """
    if min(map(len, strata)) == 1:
        strata = [np.concatenate(strata)]
    chosen = top_layers(np.concatenate(strata).mean(0), top)
    rng = np.random.default_rng(seed)
    counts, same = np.zeros(strata[0].shape[1]), 0
    for _ in range(subsets):
        drawn = [each[rng.integers(len(each), size=len(each))] for each in strata]
        layers = top_layers(np.concatenate(drawn).mean(0), top)
        counts[list(layers)] += 1
        same += layers == chosen
    return Stability(subsets, seed, same / subsets, tuple((counts / subsets).tolist()))


def ship(calibration: Calibration, file: Path) -> None:
    """Write a calibration beside its weights, and the layers of their own model into config.json.

    `layers=representative` reads the first, the library (`ToPi()(pipe)`) the second.

    Args:
        file: `Editor.calibration_file`.
    """
    write_calibration(file, calibration)
    if file.name == "calibration.json":
        config = file.with_name("config.json")
        settings = files.read_json(config)
        settings["representative_layers"] = list(calibration.layers)
        files.write_json(config, settings)


def _curves(rows: Sequence[Row], top: int) -> Curves:
    by_layer = np.mean([row["by_layer"] for row in rows], 0)
    by_step = np.mean([row["by_step"] for row in rows], 0)
    layers = top_layers(by_layer, top)
    return Curves(len(rows), layers, _rounded(by_layer), _rounded(by_step))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Six digits after the point; a bootstrap resolves far less."""
    return tuple(round(float(value), 6) for value in values)
