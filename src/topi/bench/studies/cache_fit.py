"""Fit the parameters of temporal caches to a model: TeaCache's polynomial, MagCache's ratios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.results.cache_fit_file import CacheFit
from topi.bench.runs.resume import Row, collect
from topi.errors import ToPiError
from topi.methods.caches.teacache import rescale
from topi.methods.probes.cache_probe import CacheProbe

DEGREE = 4  # of TeaCache's polynomial
SHARE = 0.5  # of the steps, that TeaCache computes at the fitted threshold


def fit_polynomial(inputs: Sequence[float], outputs: Sequence[float]) -> dict[str, Any]:
    """Least squares from the relative change of the input to that of the output.

    Args:
        inputs, outputs: [n], at least five different inputs.

    Returns:
        `coefficients`, highest power first, and `ceiling`, the largest input.

    Raises:
        ToPiError: too few different inputs.
    """
    if len(set(inputs)) <= DEGREE:
        raise ToPiError(
            f"A polynomial of degree {DEGREE} needs {DEGREE + 1} different points, but there are "
            f"{len(set(inputs))}; use more samples or more steps."
        )
    coefficients = np.polyfit(np.asarray(inputs), np.asarray(outputs), DEGREE)
    return {"coefficients": [float(f"{c:.9g}") for c in coefficients], "ceiling": max(inputs)}


def computed_share(changes: Sequence[float], threshold: float) -> float:
    """The share of steps that TeaCache computes.

    Args:
        changes: [T - 1] rescaled change of the input at each step after the first.
    """
    drift, computed = 0.0, 1
    for step, change in enumerate(changes, start=1):
        drift += change
        if drift >= threshold or step == len(changes):
            drift, computed = 0.0, computed + 1
    return computed / (len(changes) + 1)


def fit_threshold(runs: Sequence[Sequence[float]]) -> float:
    """The threshold at which the mean `computed_share` of the runs is nearest to `SHARE`."""
    candidates = np.linspace(0, max(map(sum, runs)), 1001)
    shares = [np.mean([computed_share(run, threshold) for run in runs]) for threshold in candidates]
    off = np.abs(np.array(shares) - SHARE)
    best = candidates[off <= off.min() + 1e-9]
    return float(f"{best[len(best) // 2]:.3g}")


def fit_cache(
    editor: Editor,
    samples: Sequence[EditSample],
    seed: int,
    origin: dict[str, Any],
    rows: Path | None = None,
) -> CacheFit:
    """Run the unmodified editor over `samples` and fit.

    Args:
        seed: of the noise of all samples.
        origin: where the fit comes from.
        rows: a file that keeps the finished samples, so that a killed run continues there.

    Raises:
        ToPiError: the samples have no references, or too few steps.
    """
    probe = CacheProbe()

    def row_of(index: int, sample: EditSample) -> Row:
        watch_output(editor, sample, seed, probe)
        return {"inputs": probe.inputs, "outputs": probe.outputs, "ratios": probe.ratios}

    return summarise(collect(samples, row_of, f"{editor.name}: cache fit", rows), origin)


def summarise(rows: Sequence[Row], origin: dict[str, Any]) -> CacheFit:
    """The fit to what the probe saw.

    Every step of a CFG branch but the first is a point of the polynomial; the ratios are means over
    samples and branches, that of the first step is 1.

    Args:
        rows: of each sample, the `inputs`, `outputs` and `ratios` of a `CacheProbe`.
    """
    runs = [changes for row in rows for changes in row["inputs"].values()]
    outputs = [y for row in rows for branch in row["inputs"] for y in row["outputs"][branch]]
    ratios = [[1.0, *row["ratios"][branch]] for row in rows for branch in row["inputs"]]
    polynomial = fit_polynomial([change for run in runs for change in run], outputs)
    rescaled = [[rescale(change, **polynomial) for change in run] for run in runs]
    error = np.concatenate(rescaled) - np.array(outputs)
    teacache = {**polynomial, "threshold": fit_threshold(rescaled)}
    per_step = np.mean(ratios, axis=0)
    return CacheFit(
        caches={"teacache": teacache, "magcache": {"ratios": np.round(per_step, 5).tolist()}},
        quality={
            "teacache": {
                "r2": 1 - float(np.var(error) / np.var(outputs)),
                "mean_error": float(np.abs(error).mean()),
                "points": len(outputs),
            },
            "magcache": {"deviation": float(np.std(ratios, axis=0).mean()), "runs": len(ratios)},
        },
        origin=origin,
    )


def watch_output(editor: Editor, sample: EditSample, seed: int, probe: CacheProbe) -> None:
    """One edit under the probe, which also sees what the transformer returns."""

    def see(module: Any, args: tuple, output: Any) -> None:
        if probe.trace:
            probe.see_output(output[0])

    with probe(editor.pipe):
        hook = editor.transformer.register_forward_hook(see)
        try:
            editor.edit(sample, seed)
        finally:
            hook.remove()
    if not probe.inputs:
        raise ToPiError(
            f"Sample {sample.id} gave {editor.name} no two steps with references to compare; use "
            "samples with references and more than one step."
        )
