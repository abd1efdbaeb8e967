"""The keys of committed cells are found again, from the configurations in their manifests."""

from dataclasses import replace
from pathlib import Path

import pytest

from topi.bench.results import Store
from topi.bench.results.keys import canonical
from topi.bench.runs.assemble import assemble
from topi.bench.runs.identify import identify
from topi.bench.runs.work import config_of

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


@pytest.fixture(scope="module")
def cells():
    return Store(RESULTS).load_cells()


@pytest.mark.parametrize(
    "key",
    [
        "kontext_standin-checker+taylorseer-4a8835a440719f2d",
        "kontext_standin-dato-216c0406eb3676cf",
        "qwen_standin-topi-cda8ac1ab93bd963",
    ],
)
def test_a_committed_cell_is_identified_again(cells, key, tmp_path):
    (cell,) = [cell for cell in cells if cell.key == key]
    manifest = identify(assemble(replace(config_of(cell), store=str(tmp_path))))
    names = ("key", "label", "full_key")
    assert [manifest[name] for name in names] == [cell.manifest[name] for name in names]
    for name in ("full", "params"):
        assert canonical(manifest[name]) == canonical(cell.manifest[name])
