"""What bf16 and compiling gain is measured on the trainer's own steps, in turns."""

import pytest
import torch

from topi.bench.standins import throughput
from topi.bench.standins.module import EditorTraining

SMALL = ["schedule=smoke", "accelerator=cpu", "compile=false"]
SMALL += ["model.transformer.heads=2", "model.transformer.dual=1", "model.transformer.single=1"]


def test_variants_take_turns(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self)))
    compiled, stepped = [], []
    step = EditorTraining.training_step

    def seen(self, batch, index):
        stepped.append((id(self), torch.is_autocast_enabled("cpu"), len(batch.prompts)))
        return step(self, batch, index)

    monkeypatch.setattr(EditorTraining, "training_step", seen)
    throughput.main([*SMALL, "--rounds=2", f"--out={tmp_path / 'told.json'}"])
    # A block of either kind, with and without bf16.
    assert sorted(kind.__name__ for kind in compiled) == [
        *["FluxSingleTransformerBlock"] * 2,
        *["FluxTransformerBlock"] * 2,
    ]
    rounds = [stepped[k : k + 4] for k in range(0, len(stepped), 4)]
    assert len(rounds) == 4  # two of them thrown away
    assert all(
        sorted(low for _, low, _ in round_) == [False, False, True, True] for round_ in rounds
    )
    assert len({rounds[k][0][0] for k in range(4)}) == 4  # another one first in each round
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[4:]] == [
        *throughput.VARIANTS,
        throughput.DRAWING,
    ]


def test_gains_are_paired_by_round():
    first, *others = throughput.VARIANTS
    seconds = {first: [2.0, 4.0, 8.0]} | {name: [1.0, 2.0, 4.0] for name in others}
    found = throughput.gains(seconds)
    assert found[first].value == 1
    assert all(found[n].value == found[n].low == found[n].high == 2 for n in others)


def test_a_step_changes_the_weights():
    from topi.bench.editors.standin import FAMILIES, BlockTransformVAE
    from topi.bench.editors.text import PromptCache
    from topi.bench.standins.stream import Draw, draw_batch

    family = FAMILIES["kontext"]
    torch.manual_seed(0)
    module = EditorTraining(
        family, family.new(heads=2, dual=1, single=1), BlockTransformVAE(), PromptCache(), None
    )
    before = {n: p.detach().clone() for n, p in module.transformer.named_parameters()}
    steps = throughput.Steps(module, torch.float32, False)
    for group in steps.optimizer.param_groups:
        group["lr"] = 1e-3
    steps(draw_batch(Draw([(48, 48)], 2, family.reference_size), 0))
    changed = [n for n, p in module.transformer.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) > len(before) / 2
    assert all(p.grad is None for p in module.transformer.parameters())


@pytest.mark.parametrize("wrong", [["model=flux"], ["schedule=none"]])
def test_unknown_names_are_told(wrong):
    with pytest.raises(Exception, match="Could not find"):
        throughput.main(wrong)
