"""The comparison of trained runs, on an untrained one."""

import json
from pathlib import Path

import pytest
import torch

from topi.bench.data import MiniEdit
from topi.bench.editors.standin import FAMILIES, BlockTransformVAE, save_standin
from topi.bench.standins import redundancy
from topi.bench.standins import redundancy_table as tables


@pytest.mark.parametrize("kind", ["kontext", "qwen_edit"])
def test_runs_are_measured_once_and_shown_side_by_side(tmp_path, capsys, kind):
    shape = {"kontext": dict(dual=1, single=3), "qwen_edit": dict(layers=4)}[kind]
    torch.manual_seed(0)
    for name, factor in (("control", 1), ("fine", 2)):
        folder = tmp_path / name
        save_standin(FAMILIES[kind].new(heads=2, **shape), BlockTransformVAE(), folder)
        (folder / "recipe.json").write_text(json.dumps({"enlarge": factor}))
    runs = [str(tmp_path / name) for name in ("control", "fine")]
    runs = runs[: 1 if kind == "qwen_edit" else 2]
    quick = ["--size", "48", "--steps", "4", "--samples", "4", "--out", str(tmp_path / "out")]
    redundancy.main([*runs, *quick])
    kept = sorted((tmp_path / "out").iterdir())
    assert [path.stem for path in kept] == ["control", "fine"][: len(runs)]
    measured = json.loads(kept[0].read_text())
    assert len(measured["samples"]) == 4 and len(measured["layers"]) == 3
    assert all(0 < mass < 1 for mass in measured["by_layer"] + measured["by_step"])
    assert all(0 < sample["keep"] <= 1 for sample in measured["samples"])
    before = kept[0].stat().st_mtime_ns
    redundancy.main([runs[0], *quick])
    assert kept[0].stat().st_mtime_ns == before
    capsys.readouterr()
    tables.main([*map(str, kept), str(kept[0])])
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| control | ") and len(rows) == 2 * (2 + len(runs)) + 1


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        redundancy.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "no recipe.json" in capsys.readouterr().err


def test_leads_are_paired_with_the_control():
    def run(name, influence, random):
        samples = [
            {"truth": 20.0 + k, "keep": 0.5, "influence": influence + k, "lowest influence": 0.0}
            | {"random": random + 2 * k, "checkerboard": 0.0}
            for k in range(4)
        ]
        return {"run": name, "by_layer": [0.1, 0.3, 0.1, 0.1], "by_step": [0.5, 0.2]} | {
            "samples": samples
        }

    text = tables.tables([run("control", 10.0, 12.0), run("factor", 13.0, 12.0)])
    like, half = (part.splitlines() for part in text.split("\n\n"))
    fields = [field.strip() for field in half[-1].split("|")[1:-1]]
    assert fields[0] == "factor" and fields[-1] == "+3.0 [+3.0, +3.0]"
    assert fields[2].startswith("+14.5 [") and fields[3].startswith("-0.5 [")
    assert "+0.0 [+0.0, +0.0]" in like[-1] and "0.50 → 0.20" in like[-1] and "83%" in like[-1]


def test_enlarged_sample_is_the_same_picture():
    sample = MiniEdit("evaluation", 48)[0]
    large = redundancy.enlarge(sample, 2)
    assert large.size == (96, 96) and large.target.size == large.references[0].size == (96, 96)
    assert large.instruction == sample.instruction


def test_committed_tables_are_of_what_was_measured():
    folder = Path(__file__).parents[3] / "experiments" / "standins"
    found = sorted(
        (folder / "redundancy").glob("*.json"), key=lambda path: (path.stem != "none", path)
    )
    measured = [json.loads(path.read_text()) for path in found]
    assert tables.tables(measured) == (folder / "redundancy.md").read_text()
    seen = [[sample["id"] for sample in run["samples"]] for run in measured]
    assert all(ids == seen[0] for ids in seen)
