"""A store whose results rest on the samples that are drawn today."""

from pathlib import Path

from topi.bench.data.results_check import check_result
from topi.bench.results import Store
from topi.bench.results.probe_run import load_probes


def checked_store(root: Path | str, tidy: bool = False) -> Store:
    """The store of what is reported, after a look at each kind of its cells and at its probes.

    Args:
        root: its folder.
        tidy: compact it before, as `Store.load_cells`.

    Raises:
        ToPiError: something was computed on other samples of MiniEdit than the frozen ones.
    """
    store = Store(root)
    for cell in {cell.settings: cell for cell in store.load_cells(tidy)}.values():
        check_result(cell.manifest)
    for probe in load_probes(root):
        check_result(probe.manifest)
    return store
