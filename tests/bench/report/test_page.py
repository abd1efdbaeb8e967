"""The page: complete, self-contained, and honest about stand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import pytest

from topi.bench.cli import main as cli
from topi.bench.report import build
from topi.bench.report.page.gallery import gather
from topi.bench.report.page.groups import comparable, contents, split_facts
from topi.bench.report.page.page_figures import grid
from topi.bench.report.tables.columns import ALL
from topi.bench.results.store import Store
from topi.errors import ToPiError

matplotlib.use("Agg")


SECTIONS = ("model-kontext_standin", "claims", "tables")


@pytest.fixture(scope="module")
def page(store_root, tmp_path_factory):
    return build(store_root, tmp_path_factory.mktemp("report"), per_category=1)


def test_it_writes_tables_figures_and_page(page):
    names = {path.name for path in page.parent.iterdir()}
    tables = {"kontext_standin.md", "kontext_standin.csv", "kontext_standin.tex"}
    claims = {"claims.md", "claims.csv", "claims.json"}
    assert names == {"index.html", "figures", "tables", *tables, *claims}
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    assert {"kontext_standin_quality_speed.pdf", "kontext_standin_keep_ratio.png"} <= figures
    assert sum(name.startswith("kontext_standin_grid_") for name in figures) == 8


def test_the_page_needs_no_other_file(page):
    html = page.read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']{0,30})""", html)
    pictures = [address for address in addresses if not address.startswith("#")]
    assert len(pictures) >= 6
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_says_what_was_run_and_what_a_stand_in_is(page):
    html = page.read_text()
    for fact in ("0123abc", "2.15.0", "sha256:feed", "topi tau=0.85", "Implicit change"):
        assert fact in html, fact
    assert html.count("never numbers of FLUX or Qwen") == 1
    assert "Numbers of a stand-in are never" in " ".join(html.split())


def test_the_page_opens_with_what_was_run(page):
    html = page.read_text()
    section, *later = (html.index(f'<section id="{name}"') for name in SECTIONS)
    pictures, curves, table, fold = (
        html.index(what, section)
        for what in ("outputs and masks</h3>", "Quality against speed</h3>", "<table", "<details")
    )
    order = [section, pictures, curves, table, fold, *later]
    assert order == sorted(order)
    links = set(re.findall(r'href="#([\w.-]+)"', html))
    assert links <= set(re.findall(r'id="([\w.-]+)"', html))
    assert {"claims", "tables", "model-kontext_standin"} <= links


def test_what_needs_other_cells_is_folded(page):
    html = page.read_text()
    claims = html[html.index('<section id="claims"') : html.index('<section id="tables"')]
    decided, folded, _ = re.split("<details.*?>", claims, maxsplit=2)
    assert "not testable here</span>" not in decided and 'class="chip' in decided
    assert folded.count("not testable here</span>") > 10 and "need other cells" in folded
    tables = html[html.index('<section id="tables"') :]
    shown, _, folded = tables.partition("<summary>Tables and figures that need other cells")
    assert ">missing<" not in shown and "Table 6. FLOPs" in shown
    assert "Figure 5. ToMeSD, ToMA and ToPi: the store lacks" in folded


def test_filters_find_what_they_filter(page):
    html = page.read_text()
    categories = set(re.findall(r'<tr data-category="([^"]*)"', html))
    options = set(re.findall(r"<option>([^<]*)</option>", html))
    for name in ("Camera move", "All categories"):
        assert name in categories & options
    assert set(re.findall(r'<(?:section|div|td|th)[^>]* data-model="(\w+)"', html)) <= options
    assert "getElementById" in html


def test_the_grid_shows_every_picture_and_mask(store_root):
    store = Store(store_root)
    pictures = gather(store, store.rows(), per_category=1)[:1]
    figure = grid(pictures)
    shown = [ax for block in figure.subfigs for ax in block.axes if ax.images]
    outputs, masks = len(pictures[0].outputs), 2 * len(pictures[0].anchors)
    assert len(shown) == 2 + 2 * outputs + masks
    assert pictures[0].instruction in figure.subfigs[0].get_suptitle().replace("\n", " ")


def test_retrained_weights_are_not_pooled_with_the_old_ones(tmp_path, new_store):
    new_store(tmp_path, weights="sha256:old0", per_category=1)
    new_store(tmp_path, weights="sha256:new1", per_category=1)
    store = Store(tmp_path)
    groups = list(comparable(store.load_cells()))
    titles = {f"kontext_standin (weights sha256:{name})" for name in ("old0", "new1")}
    assert {group.title for group in groups} == titles
    assert [group.stem for group in groups] == ["kontext_standin", "kontext_standin-2"]
    assert [len(store.rows(group.cells)) for group in groups] == [16, 16]


@pytest.mark.usefixtures("undrawn")
def test_a_sample_of_two_cells_counts_once(tmp_path, new_store):
    """As with data.count=4 first, and with data.count=8 later."""
    new_store(tmp_path, per_category=2)
    cell = next((tmp_path / "cells").iterdir())
    fewer = shutil.copytree(cell, cell.with_name("kontext_standin-fewer"))
    manifest = json.loads((fewer / "manifest.json").read_text())
    (fewer / "manifest.json").write_text(json.dumps(manifest | {"count": 4}))
    rows = (fewer / "rows.jsonl").read_text().splitlines(keepends=True)
    (fewer / "rows.jsonl").write_text("".join(rows[:4]))
    store = Store(tmp_path)
    (content,) = contents(store, store.load_cells())
    pooled = content.table[content.table["category"] == ALL]
    assert len(content.rows) == 36 and set(pooled["n"]) == {8}
    page = build(tmp_path, tmp_path / "report").read_text()
    assert all(key in page for key in (cell.name, fewer.name))


def test_settings_of_one_label_are_told_apart(tmp_path, new_store):
    """As with model.front_layers, which no label tells."""
    new_store(tmp_path, per_category=1)
    cell = next(path for path in (tmp_path / "cells").iterdir() if "topi" in path.name)
    other = shutil.copytree(cell, cell.with_name(f"{cell.name}-0ther"))
    manifest = json.loads((other / "manifest.json").read_text())
    changed = manifest | {"params": manifest["params"] | {"front_layers": 1}}
    (other / "manifest.json").write_text(json.dumps(changed))
    store = Store(tmp_path)
    (content,) = contents(store, store.load_cells())
    labels = set(content.table["label"])
    own = {f"{manifest['label']} #{path.name[-4:]}" for path in (cell, other)}
    assert own < labels and manifest["label"] not in labels
    assert len(labels) == len(store.load_cells())


def test_facts_are_split_into_shared_and_own():
    manifests = {"a": {"git": {"commit": "1"}, "tau": 0.8}, "b": {"git": {"commit": "1"}, "x": 1}}
    shared, own = split_facts(manifests)
    assert shared == {"git.commit": "1"}
    assert own == {"a": {"tau": "0.8"}, "b": {"x": "1"}}


def test_an_empty_store_is_one_clear_error(tmp_path):
    with pytest.raises(ToPiError, match=r"run\.py"):
        build(tmp_path / "results", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_reporting_needs_neither_torch_nor_diffusers():
    code = (
        "import sys, topi.bench.report; sys.exit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_two_groups_never_share_a_file():
    models = ["a b", "a_b", "A_B", "claims", "x", "x", "x-2"]
    cells = [
        SimpleNamespace(model=model, settings=json.dumps({"weights": str(number)}))
        for number, model in enumerate(models)
    ]
    stems = [group.stem.split("@")[0] for group in comparable(cells)]
    assert stems == ["a_b", "a_b", "A_B_1", "claims_1", "x", "x-2_1", "x-2"]
    assert len({group.stem.casefold() for group in comparable(cells)} | {"claims"}) == 8


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, capsys, store_root):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "report", tmp_path / "file"):
        assert cli.main(["report", "--store", str(store_root), "--out", str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"topi: Cannot write {out}")


def test_a_disk_that_fills_up_under_a_report_is_one_line(tmp_path, capsys, monkeypatch, store_root):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["report", "--store", str(store_root), "--out", str(tmp_path / "r")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert not list((tmp_path / "r").rglob("*.*"))
