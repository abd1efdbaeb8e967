"""A denoising loop by hand, for temporal caches."""

import pytest
import torch

from topi.engine import BlockInput, Call, CallRecord
from topi.models import Layout, ModelFacts

LAYOUT = Layout(1, (1, 2), ((1, 2),))
FACTS = ModelFacts("Flux", (2, 4), (("attention",),) * 6, None)


@pytest.fixture
def drive():
    """`drive(cache, signals)` -> for each step "c" computed or "s" skipped, and what came out.

    `signals[t]` is [1, 4, D], two target rows first: the normed input of the first block.
    `states[t]` are those before the first block, `inner[t]` those behind the first blocks, and
    `outputs[t]` [1, 2, D] what the blocks would compute; zero if not given. `anchors` are steps at
    which a stacked method scores.
    """

    def run(
        cache,
        signals,
        states=None,
        inner=None,
        outputs=None,
        branches=("cond",),
        anchors=(),
        **more,
    ):
        cache.prepare(more.pop("facts", FACTS))
        cache.reset()
        did, out = [], []
        for step, given in enumerate(signals):
            for branch in branches:
                signal = given[branch] if isinstance(given, dict) else given
                before = torch.zeros_like(signal) if states is None else states[step]
                record = CallRecord(step, branch, LAYOUT, 1, anchor=step in anchors)
                n_steps = more.get("n_steps", len(signals))
                call = Call(step, branch, LAYOUT, 1, torch.device("cpu"), record, n_steps)
                cache.begin(call)
                predicted = None
                for layer in cache.decides_before:
                    now = before if layer == 0 or inner is None else inner[step]
                    predicted = cache.skip(call, layer, BlockInput(now, lambda s=signal: s))
                did.append("c" if predicted is None else "s")
                if predicted is None:
                    predicted = before[:, :2] if outputs is None else outputs[step]
                    cache.remember(call, predicted)
                cache.end(call)
                out.append(predicted)
        return "".join(did), out

    return run


@pytest.fixture
def column():
    """`column(1, 2, 3, 4)` -> [1, 4, 1], one number per row."""
    return lambda *values: torch.tensor(values, dtype=torch.float32)[None, :, None]
