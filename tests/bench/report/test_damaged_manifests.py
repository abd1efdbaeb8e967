"""One damaged manifest is named and left aside; the other cells are shown."""

import json
import random

import pytest
from cell_records import mutated

from topi.bench.cli import main as cli
from topi.bench.report.checked import checked_store
from topi.bench.report.page import groups, page
from topi.bench.report.paper.suite import suites
from topi.bench.results import Store
from topi.errors import ToPiError


def shown(root):
    """What a report takes from a store, without its figures: keys of cells, and labels."""
    store = checked_store(root)
    contents = list(groups.contents(store, [cell for cell in store.load_cells() if cell.done]))
    for content in contents:
        groups.split_facts({cell.key: cell.manifest for cell in content.group.cells})
    runs = [suite.run(label) for suite in suites(store) for label in suite.labels]
    means = [run.mean("psnr").value for run in runs]
    keys = {cell.key for content in contents for cell in content.group.cells}
    return keys, len(means)


def test_any_field_of_a_manifest_may_be_damaged(new_store, tmp_path, capsys, caplog):
    root = new_store(tmp_path / "store", per_category=1)
    keys = {cell.key for cell in Store(root).find_cells()}
    assert shown(root) == (keys, 4)
    dice, damaged = random.Random(0), 0
    for _ in range(60):
        path = root / "cells" / dice.choice(sorted(keys)) / "manifest.json"
        sound = path.read_text()
        path.write_text(mutated(json.loads(sound), dice))
        capsys.readouterr()
        assert cli.main(["status", "--store", str(root)]) == 0
        told = capsys.readouterr().out
        others, _ = shown(root)
        assert others >= keys - {path.parent.name}
        if others != keys:
            assert "damaged" in told and f"left out: {path.parent.name}" in caplog.text
            damaged += 1
        path.write_text(sound)
    assert damaged > 15


@pytest.mark.parametrize("command", ["leaderboard", "compare"])
def test_a_store_of_a_damaged_cell_alone_is_one_error(new_store, tmp_path, capsys, command):
    root = new_store(tmp_path / "store", per_category=1)
    for path in root.glob("cells/*/manifest.json"):
        path.write_text('{"model": 7}')
    with pytest.raises(ToPiError):
        page.build(root, tmp_path / "out")
    assert cli.main([command, "--store", str(root)]) == 1
    assert capsys.readouterr().err.startswith("topi: ")
