"""Fit what temporal caches must know of a model: TeaCache's polynomial, MagCache's ratios."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from topi.data import EditSample
from topi.errors import ToPiError
from topi.evaluation.cell import progress
from topi.methods.cache_probe import CacheProbe
from topi.methods.teacache import rescale
from topi.models.editor import Editor
from topi.results.cache_fit import CacheFit

DEGREE = 4  # of TeaCache's polynomial


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
            f"A polynomial of degree {DEGREE} needs {DEGREE + 1} different points and there are "
            f"{len(set(inputs))}; use more samples or steps."
        )
    coefficients = np.polyfit(np.asarray(inputs), np.asarray(outputs), DEGREE)
    return {"coefficients": [float(f"{c:.9g}") for c in coefficients], "ceiling": max(inputs)}


def fit_cache(
    editor: Editor, samples: Sequence[EditSample], seed: int, origin: dict[str, Any]
) -> CacheFit:
    """Run the unmodified editor over `samples` and fit.

    Every step of a CFG branch but the first is a point of the polynomial; the ratios are means over
    samples and branches, that of the first step is 1.

    Args:
        seed: of the noise of all samples.
        origin: what to note of where it comes from.

    Raises:
        ToPiError: the samples have no references, or too few steps.
    """
    probe, inputs, outputs, ratios = CacheProbe(), [], [], []
    with progress(f"{editor.name}: cache fit", len(samples), 0) as advance:
        for index in range(len(samples)):
            sample = samples[index]
            watch_output(editor, sample, seed, probe)
            for branch, changes in probe.inputs.items():
                inputs += changes
                outputs += probe.outputs[branch]
                ratios.append([1.0, *probe.ratios[branch]])
            advance(f"{sample.id}: {len(inputs)} points")
    polynomial = fit_polynomial(inputs, outputs)
    error = np.array([rescale(x, **polynomial) for x in inputs]) - np.array(outputs)
    per_step = np.mean(ratios, axis=0)
    return CacheFit(
        caches={"teacache": polynomial, "magcache": {"ratios": np.round(per_step, 5).tolist()}},
        quality={
            "teacache": {
                "r2": 1 - float(np.var(error) / np.var(outputs)),
                "mean_error": float(np.abs(error).mean()),
                "points": len(inputs),
            },
            "magcache": {"deviation": float(np.std(ratios, axis=0).mean()), "runs": len(ratios)},
        },
        origin=origin,
    )


def watch_output(editor: Editor, sample: EditSample, seed: int, probe: CacheProbe) -> None:
    """One edit under the probe, which also gets to see what the transformer returns."""

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
            f"{editor.name} compared no two steps with references in sample {sample.id}; use "
            "samples with references and more than one step."
        )
