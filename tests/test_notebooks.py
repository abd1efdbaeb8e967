"""Every notebook runs from top to bottom, and is committed as it came out."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
script = SimpleNamespace(**runpy.run_path(str(FOLDER / "execute.py")))


@pytest.fixture(scope="module")
def kernel():
    with script.one_kernel() as manager:
        yield manager


def test_a_notebook_starts_without_the_variables_of_another(kernel, tmp_path):
    for content, left in (("x = 1", "False"), ("", "False")):
        cells = [nbformat.v4.new_code_cell(f"print('x' in globals())\n{content}")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
        (cell,) = script.execute(tmp_path / "one.ipynb", kernel).cells
        assert cell.outputs[0].text == f"{left}\n"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_gives_what_is_committed(path, kernel):
    committed, again = code(nbformat.read(path, as_version=4)), code(script.execute(path, kernel))
    assert [len(cell.outputs) for cell in committed] == [len(cell.outputs) for cell in again]
    assert [cell.execution_count for cell in committed] == list(range(1, len(committed) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_names_no_machine(path):
    assert path.stat().st_size < 400_000
    outputs = [o for cell in code(nbformat.read(path, as_version=4)) for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert str(FOLDER.parent) not in path.read_text()
