"""Methods beside what else is done to a pipeline: the same output as without it, or a refusal."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline, ParallelConfig
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend

from topi import Full, RandomTokens, ToPi
from topi.errors import ToPiError
from topi.models import adapter_for
from topi.models import tiny as models

small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 3}
KINDS = ["flux", "qwen"]
QUANTISED = Path(__file__).parents[2] / ".quantised"
"""bitsandbytes: apart, as it slows down every import of diffusers."""


def run(pipe, call, **arguments):
    """The output of ToPi at half of its mass, and what it kept."""
    with ToPi(tau=0.6, **small)(pipe) as method:
        return pipe(**call(steps=4, **arguments)).images, [record.kept for record in method.trace]


def quantise(module, layers, bits):
    """Every linear layer below becomes one of 8 or 4 bits."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            shape = (child.in_features, child.out_features)
            new = (
                layers.Linear8bitLt(*shape, has_fp16_weights=False)
                if bits == 8
                else layers.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
            )
            new.load_state_dict(child.state_dict())
            setattr(module, name, new.to("cpu"))
        else:
            quantise(child, layers, bits)


def fresh(tiny, kind):
    """A copy of a shared pipeline that a test may change for good, and its call arguments."""
    pipe, call = tiny(kind)
    twin = copy.copy(pipe)
    twin.transformer = copy.deepcopy(pipe.transformer)
    twin.register_modules(transformer=twin.transformer)
    return twin, call


@pytest.fixture
def backends():
    """`set_attention_backend` sets that of the whole process; afterwards it is what it was."""
    with attention_backend(_AttentionBackendRegistry.get_active_backend()[0]):
        yield


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("kind", KINDS)
def test_attention_backends(tiny, kind):
    pipe, call = fresh(tiny, kind)
    plain, kept = run(pipe, call)
    pipe.transformer.set_attention_backend("_native_math")
    output, now = run(pipe, call)
    assert now == kept
    torch.testing.assert_close(output, plain, rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="these backends are CUDA kernels")
@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("backend", "package", "tolerance"),
    [
        ("_native_flash", "torch", 2e-2),
        ("_native_cudnn", "torch", 2e-2),
        ("flash", "flash_attn", 2e-2),
        ("sage", "sageattention", 0.1),  # its keys have eight bits
    ],
)
def test_attention_backends_of_a_gpu(kind, backend, package, tolerance):
    """In bfloat16, the only precision that all of them take, on the default's tokens but for 5 %.

    A prompt without padding, as flash and sage take no mask.
    """
    pytest.importorskip(package)
    pipe, call = getattr(models, f"tiny_{kind}")(dtype=torch.bfloat16)
    pipe.to("cuda")
    plain, kept = run(pipe, call)
    pipe.transformer.set_attention_backend(backend)
    output, now = run(pipe, call)
    assert len(now) == len(kept)
    for tokens, wanted in zip(now, kept, strict=True):
        assert (tokens is None) == (wanted is None)
        assert len({*(tokens or ())} ^ {*(wanted or ())}) <= 0.05 * 2 * len(wanted or ())
    error = (output.float() - plain.float()).norm() / plain.float().norm()
    assert error < tolerance


@pytest.mark.parametrize("trim_last", [False, True])
def test_fused_projections(tiny, trim_last):
    pipe, call = fresh(tiny, "flux")
    plain, kept = run(pipe, call)
    pipe.transformer.fuse_qkv_projections()
    assert adapter_for(pipe).blocks[0].attn.fused_projections
    with ToPi(tau=0.6, **small)(pipe, trim_last=trim_last) as method:
        output = pipe(**call(steps=4)).images
    assert [record.kept for record in method.trace] == kept
    torch.testing.assert_close(output, plain, rtol=0, atol=2e-6)


def test_fused_projections_of_qwen(tiny):
    """Its processor has no use for them: the call changes nothing."""
    pipe, call = fresh(tiny, "qwen")
    plain, kept = run(pipe, call)
    pipe.transformer.fuse_qkv_projections()
    output, now = run(pipe, call)
    assert now == kept and torch.equal(output, plain)


def test_lora_adapters(tiny):
    """As part of the weights: the same as with the adapter merged into them."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    pipe, call = fresh(tiny, "flux")
    plain, _ = run(pipe, call)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    output, kept = run(pipe, call)
    assert not torch.equal(output, plain)
    for module in pipe.transformer.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.merge()
    merged, now = run(pipe, call)
    assert now == kept
    torch.testing.assert_close(output, merged, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "level"), [("flux", "leaf_level"), ("qwen", "block_level")])
def test_group_offload(tiny, kind, level):
    """Onto the CPU here, which runs the same hooks."""
    pipe, call = fresh(tiny, kind)
    plain, kept = run(pipe, call)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
    apply_group_offloading(
        pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type=level, **blocks
    )
    output, now = run(pipe, call)
    assert now == kept and torch.equal(output, plain)
    assert torch.equal(run(pipe, call)[0], plain)
    with pytest.raises(ToPiError, match="trim_last"), Full()(pipe, trim_last=True):
        pass


def test_cpu_offload_of_whole_models(tiny, monkeypatch):
    """accelerate's hooks on a transformer, as `enable_model_cpu_offload` puts them."""
    from accelerate import cpu_offload_with_hook

    pipe, call = fresh(tiny, "flux")
    plain, kept = run(pipe, call)
    _, hook = cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    output, now = run(pipe, call)
    hook.offload()
    assert now == kept and torch.equal(output, plain)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights(tiny, monkeypatch, bits):
    """By bitsandbytes: a run repeats, prunes, and with all tokens kept is the stock run."""
    if not QUANTISED.is_dir():
        pytest.skip("bitsandbytes is not in .quantised; make .quantised/.ready puts it there")
    monkeypatch.syspath_prepend(str(QUANTISED))
    import bitsandbytes

    pipe, call = fresh(tiny, "flux")
    plain, _ = run(pipe, call)
    for block in adapter_for(pipe).blocks:
        quantise(block, bitsandbytes.nn, bits)
    output, kept = run(pipe, call)
    assert not torch.equal(output, plain)
    assert torch.equal(run(pipe, call)[0], output)
    assert kept[2] and len(kept[2]) < 64
    with ToPi(tau=1.0, **small)(pipe):
        everything = pipe(**call(steps=4)).images
    assert torch.equal(everything, pipe(**call(steps=4)).images)


def test_context_parallel_is_refused(tiny):
    """Ranks hold parts of the sequence, and hooks see only those."""
    pipe, _ = fresh(tiny, "flux")
    pipe.transformer._parallel_config = ParallelConfig(context_parallel_config=object())
    with pytest.raises(ToPiError, match="context parallel"), ToPi(**small)(pipe):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_several_images_per_prompt(tiny, kind):
    """A batch shares the tokens that any of its images needs, or each has its own as if alone."""
    pipe, call = tiny(kind)

    def edited(noise, batch_mask):
        with ToPi(ratio=0.3, batch_mask=batch_mask, **small)(pipe) as method:
            count = {"num_images_per_prompt": len(noise), "latents": noise}
            images = pipe(**call(steps=4) | count).images
        return images, [record for record in method.trace if record.kept is not None]

    shape = shape_of_noise(pipe, call)
    noise = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0))
    alone = [edited(one[None], "own") for one in noise]
    own, records = edited(noise, "own")
    torch.testing.assert_close(own, torch.cat([images for images, _ in alone]), rtol=0, atol=1e-4)
    _, shared = edited(noise, "union")
    for i, record in enumerate(records):
        singles = [trace[i].kept for _, trace in alone]
        assert list(record.kept_by_sample) == singles
    assert singles[0] != singles[1]
    first = [{*trace[0].kept} for _, trace in alone]
    assert {*shared[0].kept} == first[0] | first[1]


def shape_of_noise(pipe, call):
    """Of the target's packed latents [1, |G|, C]."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape), with_kwargs=True
    )
    with Full()(pipe) as method:
        pipe(**call(steps=1))
        layout = method.trace[0].layout
    hook.remove()
    return seen[0][0], layout.n_target, seen[0][2]


def test_the_class_is_the_stock_pipeline(flux):
    assert type(flux[0]) is FluxKontextPipeline
    with RandomTokens(front_layers=1)(flux[0]):
        assert type(flux[0]) is FluxKontextPipeline
