"""Run the notebooks and save them with their outputs: `python notebooks/execute.py`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook as it comes out; what it wrote to stderr (warnings, progress) is left out."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": FOLDER}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.metadata.pop("execution", None)  # times of day
    return notebook


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))
    for path in map(Path, names):
        nbformat.write(execute(path), path)
        print(path)
