"""Random weights: the published sizes, made where they are to be."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from topi.bench.editors.editor import PIPELINES
from topi.bench.editors.random import random_pipeline, weightless
from topi.errors import ToPiError

PARAMETERS = {"kontext": 11.901e9, "qwen_edit": 20.430e9, "qwen_edit_plus": 20.430e9}


class OnHost(TorchDispatchMode):
    """Notes the bytes of each tensor that an operator yields in the memory of the host."""

    def __init__(self):
        super().__init__()
        self.bytes = [0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.bytes.append(result.nbytes)
        return result


@pytest.mark.parametrize("kind", PARAMETERS)
def test_published_sizes_are_made_on_the_device(kind):
    """On the meta device all of it: nothing passes through the memory of the host."""
    device = torch.device("meta")
    with OnHost() as host:
        pipe, _ = random_pipeline(PIPELINES[kind], kind, device, torch.bfloat16, area=1024**2)
    assert max(host.bytes) < 2**20
    for part in (pipe.transformer, pipe.vae):
        tensors = [*part.parameters(), *part.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
    count = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    assert count == pytest.approx(PARAMETERS[kind], abs=5e5)
    shapes = {name: each.shape for name, each in weightless(kind).named_parameters()}
    assert shapes == {name: each.shape for name, each in pipe.transformer.named_parameters()}


def test_a_size_that_is_not_known():
    with pytest.raises(ToPiError, match=r"Sizes are known of kontext, .*, not of flux2 yet"):
        weightless("flux2")


def test_the_yardstick_sees_the_host():
    with OnHost() as host:
        random_pipeline(
            PIPELINES["kontext"], "kontext", torch.device("cpu"), torch.float32, 64**2, True
        )
    assert max(host.bytes) >= 256 * 4 * 256 * 4
