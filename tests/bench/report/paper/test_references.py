"""Quality and cost over the number of references, on a small store written by hand."""

import json
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from topi.bench.report.export import export
from topi.bench.report.paper.build import build_figures, build_paper, suites_of
from topi.bench.report.paper.several_references import (
    points_of,
    references_figure,
    references_table,
    series_of,
)
from topi.bench.report.paper.suite import best_suites, suites
from topi.bench.report.tables.text_table import to_latex, to_markdown
from topi.bench.results.store import Store

matplotlib.use("Agg")
MODEL = "qwen_plus_standin"
LABELS = ("full", "topi ratio=0.5", "topi tau=0.85", "random")


@pytest.fixture
def add(tmp_path, write_cell):
    """Writes a cell with so many references; `lost` is added to the PSNR of every sample."""

    def add(label, references, lost=0.0, data="mini_edit", model=MODEL, **options):
        cell = write_cell(tmp_path, model, label, samples=8, pictures=0, **options)
        manifest = json.loads((cell / "manifest.json").read_text())
        manifest["config"]["data"] = {"name": data, "references": references, "size": 64}
        manifest["full"]["data"] = f"{data}-{references}"
        rows = [json.loads(line) for line in (cell / "rows.jsonl").open()]
        for row in rows:
            row["psnr"] += lost
        (cell / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (cell / "manifest.json").write_text(json.dumps(manifest))
        return cell.rename(cell.with_name(f"{cell.name}-{data}-{references}"))

    return add


@pytest.fixture
def filled(add, tmp_path):
    """One, two and four references; random tokens lose 1 dB with each, and lack the last cell."""
    for references in (4, 1, 2):
        for label in LABELS:
            lost = 1.0 - references if label == "random" else 0.0
            if (label, references) != ("random", 4):
                add(label, references, lost)
    return Store(tmp_path)


def test_a_series_is_of_one_model_and_one_data_set(add, filled, tmp_path):
    add("random", 1, model="kontext_standin")  # alone
    add("random", 2, data="mini_edit_plus")  # alone
    (series,) = series_of(suites(filled))
    assert [suite.references for suite in series.suites] == [1, 2, 4]
    assert series.title == MODEL
    add("random", 4, data="mini_edit_plus")
    _, plus = series_of(suites(filled))
    assert [suite.references for suite in plus.suites] == [2, 4]
    assert plus.title == f"{MODEL}, 2 needed"
    add("random", 2, model="kontext_standin")  # side by side
    assert series_of(suites(filled))[0].title == "kontext_standin"


def test_numbers_pair_across_references(filled):
    (series,) = series_of(suites(filled))
    points = points_of(series).set_index(["method", "references"])
    assert list(points.loc["topi"].index) == [1, 2, 4]
    assert list(points.loc["random"].index) == [1, 2]  # what is missing is left out
    two = points.loc["random", 2]
    assert two["lost"] == pytest.approx(-1) and two["lost_high"] - two["lost_low"] < 1e-9
    assert two["psnr_high"] - two["psnr_low"] > 1  # the samples differ
    assert np.isnan(points.loc["random", 1]["lost"])
    assert np.isinf(points.loc["full", 4]["psnr"]) and points.loc["full", 4]["flop_speedup"] == 1


def test_the_table(filled):
    (series,) = series_of(suites(filled))
    table = references_table(series)
    markdown = to_markdown(table)
    assert len(table.rows) == 11 and len(table.keys) == 11
    assert [row[0].text for row in table.rows if row[0].text] == [
        "full",
        "topi",
        "topi, τ=0.85",
        "random",
    ]
    assert re.search(r"\|  \| 2 \| [\d.]+ \[.*\] \| -1.00 \[-1.00, -1.00\] \|", markdown)
    assert "| full | 1 | ∞ |  | 1.00 | 1.00× |" in markdown and "stand-in" in markdown
    assert r"\midrule" in to_latex(table)


def test_the_figure(filled, check_texts):
    figure = references_figure(filled, suites_of("references", suites(filled)))
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "2", "4"]
    points = points_of(series_of(suites(filled))[0])
    for ax, name in ((left, "psnr"), (right, "flop_speedup"), (right, "speedup")):
        drawn = {tuple(np.round(line.get_ydata(), 6)) for line in ax.lines}
        for method, lines in points[np.isfinite(points[name])].groupby("method"):
            assert tuple(np.round(lines[name], 6)) in drawn, (method, name)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["full", "topi", "topi, τ=0.85", "random"]
    check_texts(figure)
    assert references_figure(filled, []) is None
    plt.close(figure)


def test_a_report_has_it_only_if_there_are_cells(filled, add, tmp_path):
    out = export(tmp_path, tmp_path.with_name(f"{tmp_path.name}_small"))
    for root in (tmp_path, out):
        paper = build_paper(root, tmp_path / "report")
        assert [t.name for t in paper.tables].count("references") == 1
        assert [f.name for f in paper.figures].count("references") == 1
    assert (tmp_path / "report" / "tables" / "references.md").is_file()


def test_a_store_without_cells_says_so(add, tmp_path):
    add("random", 1)
    store = Store(tmp_path)
    drawn, missing = build_figures(store, suites(store), tmp_path, ["references"])
    assert not drawn and "experiment=references" in missing[0]
    paper = build_paper(tmp_path, tmp_path / "report")
    assert "references" not in {each.name for each in (*paper.tables, *paper.figures)}
    assert not any("experiment=references" in sentence for sentence in paper.missing)


def test_other_artefacts_do_not_see_references_that_nobody_needs(filled, add):
    assert [s.references for s in best_suites(suites(filled), LABELS)] == [1]
    add("topi tau=0.85", 2, data="mini_edit_plus")
    add("topi tau=0.85", 4, data="mini_edit_plus")
    (shown,) = suites_of("fig9", suites(filled))
    assert (shown.data["name"], shown.references) == ("mini_edit_plus", 2)
