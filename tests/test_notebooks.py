"""Every notebook runs from top to bottom, and is committed as it came out."""

import runpy
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
execute = runpy.run_path(str(FOLDER / "execute.py"))["execute"]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_gives_what_is_committed(path):
    committed, again = code(nbformat.read(path, as_version=4)), code(execute(path))
    assert [len(cell.outputs) for cell in committed] == [len(cell.outputs) for cell in again]
    assert [cell.execution_count for cell in committed] == list(range(1, len(committed) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_names_no_machine(path):
    assert path.stat().st_size < 400_000
    outputs = [o for cell in code(nbformat.read(path, as_version=4)) for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert str(FOLDER.parent) not in path.read_text()
