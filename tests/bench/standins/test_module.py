"""The training module of a stand-in, and what its models look at before any training."""

import pytest
import torch

from topi.bench.editors.standin import FAMILIES, BlockTransformVAE
from topi.bench.standins.module import EditorTraining, to_signed
from topi.bench.standins.stream import Draw, draw_batch


def test_prompt_dropout_leaves_prompts_empty(small, prompts, tmp_path):
    seen, family = [], FAMILIES["qwen_edit"]
    torch.manual_seed(0)
    parts = family, family.new(**small["qwen_edit"]), BlockTransformVAE(), prompts, tmp_path
    module = EditorTraining(*parts, prompt_dropout=0.5)
    module.log = lambda *args, **kwargs: None
    module.__dict__["prompts"] = lambda texts: seen.extend(texts) or prompts(texts)
    batch = draw_batch(Draw([(48, 48)], 32, family.reference_size), 0)
    module.training_step(batch, 0)
    assert 6 <= seen.count("") <= 26 and len(seen) == 32


def test_copy_head_looks_at_its_own_place(small):
    """Head 0 of a new model: queries of the target peak at the same place in the reference."""
    settings = {"own": {}, "wide": {"copy_pairs": (1, 2)}, "none": {"copy_head": False}}
    for kind, family in FAMILIES.items():
        looks = {}
        for name, setting in settings.items():
            torch.manual_seed(0)
            looks[name] = _shares_near_own_place(kind, family.new(**small[kind], **setting))
        own, wide, none = looks.values()
        assert own[0] > 0.5 > 0.1 > none[0], (kind, looks)
        assert wide[0] < own[0] / 2 and wide[1] > 0.4 > 2 * none[1], (kind, looks)


def _shares_near_own_place(kind, transformer) -> tuple[float, float]:
    """Of target tokens, whose strongest key in head 0 is their own place, or at most 2 off."""
    from topi.engine import WatchesAttention
    from topi.methods.base import Method

    class Look(Method, WatchesAttention):
        shares = (0.0, 0.0)

        def attend(self, call, layer, query, key, value, mask):
            n_text, n = call.layout.n_text, call.layout.n_target
            logits = query[0, n_text : n_text + n, 0] @ key[0, n_text:, 0].T
            found, own = logits.argmax(-1), torch.arange(n)
            off = torch.maximum((found % n // 6 - own // 6).abs(), (found % 6 - own % 6).abs())
            off[found < n] = n  # at the target, not at the reference
            self.shares = tuple(float((off <= far).float().mean()) for far in (0, 2))

    family, look = FAMILIES[kind], Look()
    tokens = torch.randn(2, 1, 36, 64)
    text = (torch.randn(1, 16, 384), torch.randn(1, 384))
    with look(transformer), torch.no_grad():
        family.velocity(transformer, list(tokens), [(6, 6)] * 2, text, torch.tensor([0.5]))
    return look.shares


def test_to_signed():
    assert to_signed(torch.tensor([[[[0, 127, 255]]]], dtype=torch.uint8)).flatten().tolist() == (
        pytest.approx([-1, -0.0039, 1], abs=1e-3)
    )
