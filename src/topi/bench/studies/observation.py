"""Watch the attention of the unmodified editor, and note where a result comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from topi.bench.data import EditSample
from topi.bench.editors.editor import Editor
from topi.bench.results.provenance import provenance
from topi.errors import ToPiError
from topi.methods.probes.attention_probe import AttentionProbe, Key


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
    """Weights, settings, code, versions and device of a result. It can be published."""
    circumstances = provenance(editor.device_name, torch.get_num_threads())
    public = ("git", "code", "versions", "device")  # not the job: it names the machine
    return {
        "model": editor.name,
        "weights": editor.fingerprint(),
        "steps": editor.steps,
        "seed": seed,
        **{name: circumstances[name] for name in public if name in circumstances},
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
