"""Every cell of the README's table of supported pipelines, tried on a tiny pipeline.

A cell that says "yes" works: with all tokens kept the output is the stock one, with half of them
tokens are dropped. "one picture": the pipeline itself takes one reference.
"""

import copy
import re
from pathlib import Path

import pytest
import torch

import topi
from topi import TaylorSeer, ToPi
from topi.models import adapter_for
from topi.models.tiny import random_image

ROOT = Path(__file__).resolve().parents[1]
QUANTISED = ROOT / ".quantised"
KINDS = {
    "FLUX.1 Kontext": "flux",
    "Qwen-Image-Edit": "qwen",
    "Qwen-Image-Edit-Plus": "qwen_plus",
    "FLUX.2 dev, klein": "flux2",
}
SMALL = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 3}


def support_table():
    """(pipeline, column, cell) of the table in the README."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| Pipeline |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    columns, cells = rows[0][1:], []
    for name, *values in rows[2:]:
        if len(values) != len(columns):
            break
        cells += [(name, column, cell) for column, cell in zip(columns, values, strict=True)]
    return cells


def references_seen(pipe, call):
    with ToPi(ratio=0.5, **SMALL)(pipe) as method:
        images = [random_image((128, 128), 3), random_image((160, 96), 4)]
        pipe(**call(steps=3, references=images))
    return len(method.trace[0].layout.reference_grids)


def dropped(method):
    return any(record.kept is not None for record in method.trace)


def check(pipe, call, **more):
    """All tokens kept: the stock output. Half of them: tokens are dropped."""
    stock = pipe(**call(steps=3, **more)).images
    with ToPi(tau=1.0, **SMALL)(pipe):
        assert torch.equal(pipe(**call(steps=3, **more)).images, stock)
    with ToPi(ratio=0.5, **SMALL)(pipe) as method:
        pipe(**call(steps=3, **more))
    assert dropped(method)
    return method


def guidance(pipe, call, patch):
    method = check(pipe, call, cfg=True)
    assert {record.branch for record in method.trace} == {"cond", "uncond"}


def several_references(pipe, call, patch):
    assert references_seen(pipe, call) == 2


def batch(pipe, call, patch):
    method = check(pipe, call, cfg=False, num_images_per_prompt=2)
    assert {record.batch for record in method.trace} == {2}


def compiled(pipe, call, patch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain = pipe(**call(steps=3)).images
    topi.compile(pipe, backend=count)
    with ToPi(ratio=0.5, **SMALL)(pipe) as method:
        pipe(**call(steps=3))
    assert dropped(method) and graphs
    with ToPi(tau=1.0, **SMALL)(pipe):
        torch.testing.assert_close(pipe(**call(steps=3)).images, plain, rtol=0, atol=1e-5)


def offload(pipe, call, patch):
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    check(pipe, call)


def lora(pipe, call, patch):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    plain = pipe(**call(steps=3)).images
    pipe.transformer.add_adapter(config)
    assert not torch.equal(pipe(**call(steps=3)).images, plain)
    check(pipe, call)


def quantised(pipe, call, patch):
    if not QUANTISED.is_dir():
        pytest.skip("bitsandbytes is not in .quantised; make .quantised/.ready puts it there")
    patch.syspath_prepend(str(QUANTISED))
    from bitsandbytes.nn import Linear8bitLt

    for block in adapter_for(pipe).blocks:
        for path, linear in list(block.named_modules()):
            if isinstance(linear, torch.nn.Linear):
                new = Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
                new.load_state_dict(linear.state_dict(), strict=False)
                block.set_submodule(path, new.to("cpu"))
    check(pipe, call)


def caches(pipe, call, patch):
    with (ToPi(ratio=0.5, **SMALL) + TaylorSeer(interval=2))(pipe) as method:
        pipe(**call(steps=6))
    assert dropped(method)
    assert any(record.skipped for record in method.trace)


CHECKS = {
    "CFG": guidance,
    "several references": several_references,
    "batch": batch,
    "compiled blocks": compiled,
    "offloading": offload,
    "LoRA": lora,
    "quantised": quantised,
    "step caches": caches,
}


def test_the_table_has_every_pipeline_and_every_check():
    table = support_table()
    assert {name for name, _, _ in table} == set(KINDS)
    assert {column for _, column, _ in table} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "column", "cell"), support_table(), ids=lambda text: re.sub(r"\W+", "-", text)
)
def test_cell(tiny, monkeypatch, name, column, cell):
    shared, call = tiny(KINDS[name])
    pipe = copy.copy(shared)
    pipe.transformer = copy.deepcopy(shared.transformer)
    pipe.register_modules(transformer=pipe.transformer)
    if cell == "yes":
        CHECKS[column](pipe, call, monkeypatch)
        return
    assert cell == "one picture" and column == "several references"
    assert references_seen(pipe, call) == 1
