"""Sanity: at its neutral setting every method and every cache is bit-equal to full context."""

import pytest
import torch

from topi.methods import CACHES, METHODS, make_cache, make_method

STEPS = 3
NEUTRAL = {
    "full": {},
    "topi": {"tau": 1.0, "front_layers": 2, "layers": (2, 4), "first_anchor": 0},
    "topi_cover": {"tau": 1.0, "front_layers": 2, "layers": (2, 4), "first_anchor": 0},
    "topi_kv": {"tau": 1.0, "layers": (2, 4), "update_every": 1},
    "ref_kv": {"update_every": 1},
    "regione": {"update_every": 1, "first_anchor": 0},
    "fewer_steps": {"share": 1.0},
    "downscaled_ref": {"scale": 1.0},
    "random": {"ratio": 1.0, "front_layers": 2, "first_anchor": 0},
    "checker": {"front_layers": 2, "first_anchor": STEPS},  # half of the tokens, but never yet
    "tomesd": {"ratio": 0.0},
    "toma": {"ratio": 0.0},
    "sdtm": {"ratio": 0.0, "deviation": 0.0},
    "dato": {"ratio": 0.0, "cache_every": 1},
    "teacache": {"threshold": 0.0, "coefficients": (1.0, 0.0)},
    "first_block_cache": {"threshold": -1.0},
    "taylorseer": {"interval": 1},
    "magcache": {"max_skips": 0, "ratios": (1.0,) * STEPS},
}
"""Name -> the parameters with which it changes nothing; `_ref` variants share them."""
NEVER = {"ref_kv_causal"}
"""References in a pass of their own: no setting of these is full context."""


@pytest.fixture(scope="module")
def pipelines(tiny, with_ip_adapter):
    """Each kind's pipeline, maker of call arguments, and full-context output."""
    kinds = {kind: tiny(kind) for kind in ("flux", "flux2", "qwen")}
    kinds["flux with IP-Adapter"] = with_ip_adapter()
    return {
        kind: (pipe, call, pipe(**call(steps=STEPS, cfg=True)).images)
        for kind, (pipe, call) in kinds.items()
    }


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "flux with IP-Adapter"])
@pytest.mark.parametrize("name", sorted({*METHODS, *CACHES} - NEVER))
def test_neutral(pipelines, name, kind):
    params = NEUTRAL.get(name, NEUTRAL.get(name.removesuffix("_ref")))
    assert params is not None, f"say in NEUTRAL with which parameters {name} changes nothing"
    pipe, call, full = pipelines[kind]
    with (make_cache if name in CACHES else make_method)(name, **params)(pipe) as method:
        assert torch.equal(pipe(**call(steps=STEPS, cfg=True)).images, full)
    assert len(method.trace) == 2 * STEPS
    for record in method.trace:
        assert not record.skipped and not record.merged and record.kept is None
