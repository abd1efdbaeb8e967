"""A denoising loop by hand, for temporal caches; transformers whose attention is rewritten."""

from contextlib import contextmanager

import pytest
import torch

from topi.engine import BlockInput, Call, CallRecord
from topi.models import Layout, ModelFacts, adapter_for
from topi.models.rebind import rebind

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


@contextmanager
def attention(adapter, change):
    """`change(layer, query, key, value, mask)` decides what every layer attends to."""
    processors = [adapter.merge_points(k).attention.processor for k in range(adapter.facts.depth)]
    classes = [type(processor) for processor in processors]
    for layer, (processor, cls) in enumerate(zip(processors, classes, strict=True)):
        dispatch = cls.__call__.__globals__["dispatch_attention_fn"]

        def attend(query, key, value, attn_mask=None, *, at=layer, inner=dispatch, **rest):
            key, value, attn_mask = change(at, query, key, value, attn_mask)
            return inner(query, key, value, attn_mask=attn_mask, **rest)

        call = rebind(cls.__call__, dispatch_attention_fn=attend)
        processor.__class__ = type(cls.__name__, (cls,), {"__call__": call})
    try:
        yield
    finally:
        for processor, cls in zip(processors, classes, strict=True):
            processor.__class__ = cls


def inputs_of(tiny, kind, **options):
    """A transformer and its arguments at two steps of one pipeline call."""
    pipe, call = tiny(kind, **options)
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    pipe(**call(steps=2, cfg=False))
    handle.remove()
    return adapter_for(pipe.transformer), seen


@torch.no_grad()
def targets(adapter, inputs):
    output = adapter.transformer(**inputs)[0]
    return output[:, : adapter.layout(inputs).n_target]


@pytest.fixture
def by_hand():
    """`attention, inputs_of, targets`: rewrite attention; get arguments; run for target outputs."""
    return attention, inputs_of, targets
