"""What a method's trace counts against a formula by hand, for every method and every cache.

A layer of n tokens of width d takes 24 n d^2 FLOPs in linear layers and 4 n s d in the attention to
s keys; modulation, embeddings and output layers come on top. At the size of FLUX.1 Kontext the same
count has to give the ideal speed-ups of the schedules that papers and specifications name.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from topi.engine import CallRecord
from topi.engine.flops import FlopCounter
from topi.methods import CACHES, METHODS, make_cache, make_method
from topi.models import Layout, adapter_for

D, CHANNELS, TEXT_WIDTH = 64, 64, 32  # of the tiny models
OFTEN = {"first_anchor": 0, "update_every": 2}
SCORED = OFTEN | {"layers": (1, 3), "ratio": 0.3}
WORKING = {
    "topi": SCORED | {"front_layers": 2},
    "topi_cover": SCORED | {"front_layers": 2},
    "topi_kv": SCORED,
    "ref_kv": OFTEN,
    "regione": OFTEN | {"last_full": 0},
    "random": OFTEN | {"front_layers": 2},
    "checker": OFTEN | {"front_layers": 2},
    "toma": {"merge_every": 1},
    "sdtm": {"multiple": 1},
    "dato": {"front_layers": 2},
    "teacache": {"threshold": 9.0, "coefficients": (1.0, 0.0)},
    "first_block_cache": {"threshold": 9.0, "first_blocks": 2},
    "taylorseer": {"interval": 3, "warmup": 1},
    "magcache": {"retention": 0, "ratios": (1.0,) * 4},
}
"""Name -> the parameters with which it saves something on tiny models in four steps."""


def blocks(record, kind):
    """FLOPs of the layers that run."""
    text, whole, d, total = record.layout.n_text, record.layout.n_image, D, 0
    for layer in range(6 if record.skipped_from is None else record.skipped_from):
        single = kind == "flux" and layer >= 2  # attention and MLP share the output projection
        total += 2 * d * 3 * d if single else 2 * (2 * d * 6 * d)  # modulation
        image = whole if layer < record.front_layers else record.n_image
        linear, queries, keys = 24 * (text + image), text + image, record.stored.get(layer, 0)
        if layer in record.merged:
            scope, m = record.merged[layer]
            part = {"attention": 6 if single else 8, "mlp": 8 if single else 16}.get(scope, 24)
            linear -= part * (image - m)
            queries = text + (image if scope == "mlp" else m)
        total += linear * d**2 + 4 * d * queries * (queries + keys)
    return total


def ends(layout, kind, outputs):
    """FLOPs of embeddings and conditions, and of the output layers on so many tokens."""
    inputs = 2 * D * (layout.n_image * CHANNELS + layout.n_text * TEXT_WIDTH)
    conditions = [256, 256, TEXT_WIDTH] if kind == "flux" else [256]  # time, guidance, text
    conditions = sum(2 * D * (width + D) for width in conditions)
    return inputs + conditions + 2 * D * 2 * D + 2 * outputs * D * CHANNELS


def by_hand(record, kind):
    """FLOPs of one transformer call."""
    layout = record.layout
    outputs = layout.n_target if record.skipped else record.n_image
    total = blocks(record, kind) + ends(layout, kind, outputs)
    if record.probed:
        total += 2 * D * 6 * D  # the modulation of the first block once more
    if record.alone:  # text runs along, references attend to each other only
        n, c = layout.n_text + layout.n_reference, layout.n_reference
        none = replace(record, skipped_from=0, stored={}, computed=None, kept=None, alone=False)
        modulation = blocks(replace(none, skipped_from=None, layout=Layout(0, (0, 0), ())), kind)
        total += ends(layout, kind, layout.n_target) + modulation
        total += 6 * (24 * n * D**2 + 4 * D * n * c)
    return record.batch * total


IN_QWEN = ("topi", "ref_kv_causal", "regione", "sdtm", "teacache")
"""A method of each kind of trace; all others on FLUX alone, as counting takes half a second."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "flux") for name in sorted({*METHODS, *CACHES})] + [(name, "qwen") for name in IN_QWEN],
)
def test_counted_flops_are_those_of_the_formula(tiny, name, kind):
    pipe, call = tiny(kind)
    params = WORKING.get(name, WORKING.get(name.removesuffix("_ref"), {}))
    with (make_cache if name in CACHES else make_method)(name, **params)(pipe) as method:
        pipe(**call(steps=4, cfg=False))
    count = FlopCounter(pipe.transformer).run(method.trace)
    whole = [
        r.stands_for * by_hand(CallRecord(0, "", r.full_layout or r.layout, r.batch), kind)
        for r in method.trace
    ]
    assert count.full == sum(whole)
    assert count.method == sum(by_hand(record, kind) for record in method.trace)
    assert (count.method < count.full) is (name != "full")


@pytest.mark.parametrize("kind", ["flux", "qwen"])
@pytest.mark.parametrize("name", ["teacache", "first_block_cache"])
def test_the_look_before_a_skip_is_counted(tiny, name, kind):
    """What the run itself computes: the first blocks of each step, or its modulation again."""
    pipe, call = tiny(kind)
    with make_cache(name, **WORKING[name])(pipe) as method, FlopCounterMode(display=False) as real:
        pipe(**call(steps=4, cfg=True, batch=2))
    assert {r.skipped_from for r in method.trace} == {None, WORKING[name].get("first_blocks", 0)}
    assert all(record.probed is (name == "teacache") for record in method.trace)
    run = real.get_flop_counts()[type(pipe.transformer).__name__]
    assert FlopCounter(pipe.transformer).run(method.trace).method == sum(run.values())


FULL = CallRecord(0, "cond", Layout(512, (64, 64), ((64, 64),)), 1)  # 1024 x 1024 pixels


@pytest.fixture(scope="module")
def kontext():
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    return FlopCounter(transformer), adapter_for(transformer).facts


@pytest.mark.parametrize(("keep", "speedup"), [(0.5, 1.28), (0.3, 1.42), (0.2, 1.50), (0.0, 1.69)])
def test_ideal_speedups_of_topi(kontext, keep, speedup):
    """Ten exempt layers of 57, four full steps of 40."""
    pruned = replace(FULL, front_layers=10, kept=tuple(range(round(4096 * keep))))
    found = kontext[0].run([FULL] * 4 + [pruned] * 36).speedup
    assert found == pytest.approx(speedup, abs=0.006)


@pytest.mark.parametrize(
    ("which", "gone", "attention", "whole"),
    [
        ("half of all tokens", 4096, 1.45, 2.23),
        ("a quarter of the references", 1024, 1.10, 1.18),
        ("three quarters of the references", 3072, 1.33, 1.74),
    ],
)
def test_ideal_speedups_of_merging(kontext, which, gone, attention, whole):
    """Every layer and step, around attention and around whole blocks.

    Within 3 % around attention: the source of these values leaves all output projections full,
    while dual blocks have one that runs on merged tokens.
    """
    counter, facts = kontext
    scopes = [{*allowed} for allowed in facts.scopes]
    for wanted, expected, within in (("attention", attention, 0.03), ("block", whole, 0.006)):
        merged = {
            layer: (wanted if wanted in allowed else "both", 8192 - gone)
            for layer, allowed in enumerate(scopes)
        }
        found = counter.run([replace(FULL, merged=merged)]).speedup
        assert found == pytest.approx(expected, rel=within)


def test_without_any_reference(kontext):
    """The bound of all that leaves reference tokens out: 2.22 per layer."""
    none = kontext[0].call(replace(FULL, layout=Layout(512, (64, 64), ())))
    assert kontext[0].call(FULL) / none == pytest.approx(2.22, abs=0.006)
