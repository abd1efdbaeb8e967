"""A method decides inside a call, before some layer, from what it saw in the layers before."""

from dataclasses import dataclass, field

import pytest
import torch

from topi.engine import FULL, Plan, WatchesAttention
from topi.engine.flops import FlopCounter
from topi.errors import ToPiError
from topi.methods import Method
from topi.methods.paper.topi import influence
from topi.methods.parts.anchor_masks import static_set

KINDS = ["flux", "qwen", "qwen_plus"]


@dataclass
class SameStep(Method, WatchesAttention):
    """Score the references in one layer and drop half of them from the next one on."""

    layer: int = 1
    share: float = 0.5
    seen: list = field(default_factory=list, init=False)

    @property
    def plans_before(self):
        return (self.layer + 1,)

    def watches(self, call, layer):
        return layer == self.layer

    def attend(self, call, layer, query, key, value, mask):
        self.scores = influence(query, key, value, call.layout, mask)

    def plan(self, call, layer=0):
        if layer == 0:
            return FULL
        self.seen.append((call.step, layer))
        return Plan(static_set(self.scores[0], self.share).nonzero().flatten(), layer)


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_drops_tokens_by_its_own_scores(tiny, kind):
    pipe, call = tiny(kind)
    with SameStep()(pipe) as method:
        pipe(**call(steps=3))
    calls = len(method.trace)
    assert [layer for _, layer in method.seen] == [2] * calls
    assert {record.front_layers for record in method.trace} == {2}
    for record in method.trace:
        assert len(record.kept) == round(0.5 * record.n_reference)
    assert len({record.kept for record in method.trace}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_kept_is_the_full_run(tiny, kind):
    pipe, call = tiny(kind)
    plain = pipe(**call(steps=2)).images
    with SameStep(share=1.0)(pipe) as method:
        assert torch.equal(pipe(**call(steps=2)).images, plain)
    assert all(record.kept is None for record in method.trace)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_same_tokens_known_before(tiny, kind):
    """A plan made inside a call runs as one that names the same tokens at its beginning."""
    pipe, call = tiny(kind)
    with SameStep()(pipe) as method:
        inside = pipe(**call(steps=2)).images
    masks = iter([torch.tensor(record.kept) for record in method.trace])

    class Known(Method):
        def plan(self, call, layer=0):
            return Plan(next(masks), from_layer=2)

    with Known()(pipe) as before:
        torch.testing.assert_close(pipe(**call(steps=2)).images, inside, rtol=0, atol=0)
    flops = FlopCounter(pipe.transformer)
    assert flops.run(before.trace) == flops.run(method.trace)


def test_tokens_are_dropped_once(flux):
    pipe, call = flux

    class Twice(SameStep):
        plans_before = (2, 3)

    with Twice()(pipe), pytest.raises(ToPiError, match=r"before layer 3.*drops tokens once"):
        pipe(**call(steps=1))
