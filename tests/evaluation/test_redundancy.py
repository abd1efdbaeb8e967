"""The comparison of trained runs, on an untrained one."""

import json

import pytest
import torch

from topi.data import MiniEdit
from topi.evaluation import redundancy
from topi.models.standin import FAMILIES, BlockTransformVAE, save_standin


@pytest.mark.parametrize("kind", ["kontext", "qwen_edit"])
def test_runs_are_measured_once_and_shown_side_by_side(tmp_path, capsys, kind):
    shape = {"kontext": dict(dual=1, single=3), "qwen_edit": dict(layers=4)}[kind]
    torch.manual_seed(0)
    for name, factor in (("control", 1), ("fine", 2)):
        folder = tmp_path / name
        save_standin(FAMILIES[kind].new(heads=2, **shape), BlockTransformVAE(), folder)
        (folder / "recipe.json").write_text(json.dumps({"enlarge": factor}))
    runs = [str(tmp_path / "control"), str(tmp_path / "fine")]
    quick = ["--size", "48", "--steps", "4", "--samples", "4"]
    redundancy.main(
        [*runs[: 1 if kind == "qwen_edit" else 2], *quick, "--out", str(tmp_path / "t")]
    )
    kept = tmp_path / "control" / "redundancy-48-4-4.json"
    measured = json.loads(kept.read_text())
    assert measured["half"]["influence"]["minus_influence"] == 0
    assert measured["samples"] == 4 and len(measured["layers"]) == 3
    assert 0 < measured["mass"] <= measured["peak"] < 1
    before = kept.stat().st_mtime_ns
    redundancy.main([runs[0], *quick, "--out", str(tmp_path / "t")])
    assert kept.stat().st_mtime_ns == before
    row = (tmp_path / "t").read_text().splitlines()[2]
    assert row.startswith("| control | ") and row.count("±") == 3


def test_enlarged_sample_is_the_same_picture():
    sample = MiniEdit("evaluation", 48)[0]
    large = redundancy.enlarge(sample, 2)
    assert large.size == (96, 96) and large.target.size == large.references[0].size == (96, 96)
    assert large.instruction == sample.instruction
