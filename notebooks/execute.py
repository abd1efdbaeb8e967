"""Run the notebooks and save them with their outputs: `python notebooks/execute.py`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


@contextmanager
def one_kernel() -> Iterator[AsyncKernelManager]:
    """A kernel for several notebooks; to start one and import torch takes most of the time."""
    manager = NotebookClient(nbformat.v4.new_notebook()).create_kernel_manager()
    try:
        yield manager
    finally:
        run_sync(manager.shutdown_kernel)(now=True)


def execute(path: Path, manager: AsyncKernelManager) -> nbformat.NotebookNode:
    """The notebook as it comes out; what it wrote to stderr (warnings, progress) is left out.

    Its variables are gone from the kernel afterwards.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, km=manager, timeout=600, coalesce_streams=True)
    client.execute(cwd=FOLDER)
    clear(client.kc)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.metadata.pop("execution", None)  # times of day
    return notebook


def clear(kernel: AsyncKernelClient) -> None:
    """Forget all variables of the kernel and leave it."""
    run_sync(kernel.execute_interactive)("%reset -f", silent=True, timeout=60)
    kernel.stop_channels()


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))
    with one_kernel() as manager:
        for path in map(Path, names):
            nbformat.write(execute(path, manager), path)
            print(path)
