"""The attention probe: attention to the references by layer, step and token (section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.results.probe_run import ProbeRun
from topi.bench.runs.resume import Row, collect
from topi.bench.studies.observation import observe, origin_of, stack
from topi.methods.paper.topi import smallest_set
from topi.methods.probes.attention_probe import AttentionProbe


def probe(
    editor: Editor,
    data: Sequence[EditSample],
    run: ProbeRun,
    manifest: Mapping[str, Any],
    seed: int = 0,
) -> None:
    """Run the unmodified editor over `data` and store its attention in a `ProbeRun`.

    Samples that `run` already holds are not run again.

    Args:
        manifest: with `layers`, the representative ones, `tau` of Eq. 10 and `count`, the samples.
        seed: of the noise; equal for all samples, as in the cells of a sweep.
    """
    run.start(origin_of(editor, seed) | dict(manifest))

    def row_of(index: int, sample: EditSample) -> Row:
        seen = observe(editor, sample, seed, maps=True)
        arrays = token_arrays(seen, manifest["layers"], manifest["tau"])
        run.add(sample.id, arrays, editor.references(sample))
        return {
            "instruction": sample.instruction,
            "branches": list(dict.fromkeys(branch for _, branch, _ in seen.mass)),
            "grids": [list(grid) for grid in seen.trace[0].layout.reference_grids],
        }

    collect(data, row_of, f"probing {editor.name}", run.rows_file)


def token_arrays(seen: AttentionProbe, layers: Sequence[int], tau: float) -> dict[str, np.ndarray]:
    """From the records of one pipeline call to the arrays that `probe_run.py` describes.

    Args:
        seen: a probe of all layers with maps.
        layers: the representative ones.
        tau: of Eq. 10.
    """
    mass, received, terms = (stack(r) for r in (seen.mass, seen.received, seen.influence))
    chosen, layout = list(layers), seen.trace[0].layout
    relevance = received * (layout.n_reference / layout.n_target)  # |C| S_j of Eq. 3
    attention = relevance.mean((0, 2))
    influence = terms[:, :, chosen].sum(2)  # Eq. 9
    influence = (influence / influence.mean(-1, keepdims=True)).mean(0)
    kept = np.zeros(influence.shape, bool)
    for step, scores in enumerate(influence):
        kept[step] = smallest_set(torch.from_numpy(scores), tau).numpy()
    return {
        "mass": mass,
        "attention": attention.astype(np.float16),
        "representative": relevance[:, :, chosen].mean((0, 2)).astype(np.float16),
        "influence": influence.astype(np.float16),
        "kept": kept,
        "rank_attention": rank_correlation(attention),
        "rank_influence": rank_correlation(influence),
    }


def rank_correlation(scores: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of [steps, n] with the first, ties sharing their rank.

    NaN where all scores of a step are equal.
    """
    ranks = pd.DataFrame(scores).rank(axis=1).to_numpy()
    ranks = ranks - ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit = ranks / np.linalg.norm(ranks, axis=1, keepdims=True)
    return (unit @ unit[0]).astype(np.float32)
