"""Watch the unmodified editor, one sample after the other; a kill loses no finished sample."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topi.bench.data import EditSample, ids_of
from topi.bench.editors.editor import Editor
from topi.bench.results import files
from topi.bench.results.provenance import provenance
from topi.bench.runs.cell import progress
from topi.errors import ToPiError
from topi.methods.attention_probe import AttentionProbe, Key


def observe(editor: Editor, sample: EditSample, seed: int, maps: bool = False) -> AttentionProbe:
    """One full-context edit of a sample under a probe of all layers.

    Raises:
        ToPiError: the transformer saw no reference tokens.
    """
    with AttentionProbe(maps=maps)(editor.pipe) as probe:
        editor.edit(sample, seed)
    if not probe.mass:
        raise ToPiError(f"{editor.name} saw no reference tokens in sample {sample.id}.")
    return probe


def origin_of(editor: Editor, seed: int) -> dict[str, Any]:
    """Where a result comes from: weights, settings, code, versions, device; fit to be published."""
    circumstances = provenance(editor.device_name, torch.get_num_threads())
    told = ("git", "code", "versions", "device")  # not the job: it names the machine
    return {
        "model": editor.name,
        "weights": editor.fingerprint(),
        "steps": editor.steps,
        "seed": seed,
        **{name: circumstances[name] for name in told if name in circumstances},
    }


def stack(records: Mapping[Key, Sequence[Any]]) -> np.ndarray:
    """What a probe recorded of one pipeline call of one image: [branches, steps, layers, ...].

    Args:
        records: `mass`, `received` or `influence` of the probe.
    """
    steps, branches, layers = (list(dict.fromkeys(part)) for part in zip(*records, strict=True))

    def value(step: int, branch: str, layer: int) -> np.ndarray:
        (only,) = records[step, branch, layer]
        array = np.asarray(only, np.float32)
        return array[0] if array.ndim else array  # the one image

    return np.array([[[value(s, b, k) for k in sorted(layers)] for s in steps] for b in branches])


def collect(
    data: Sequence[EditSample],
    row_of: Callable[[int, EditSample], dict[str, Any]],
    title: str,
    path: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per sample, in the order of the data; rows that `path` holds are not made again.

    Args:
        row_of: makes the row of a sample from its index in `data`.
        title: of the progress bar.
        path: JSON lines, appended as they come; None keeps them in memory only.
    """
    rows = [] if path is None else files.resume_lines(path)
    done, ids = {row["sample"] for row in rows}, ids_of(data)
    with progress(title, len(data), len(done)) as advance:
        for index in range(len(data)):
            if ids[index] in done:
                continue
            sample = data[index]
            about = {
                "sample": files.checked_name(sample.id),
                "index": index,
                "category": sample.category,
                "task": sample.task,
            }
            row = about | row_of(index, sample)
            if path is not None:
                files.append(path, row)
            rows.append(row)
            advance(sample.id)
    return sorted(rows, key=lambda row: row["index"])
