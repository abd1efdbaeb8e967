"""Every artefact of the paper from the fixture store: files, figures, no overlap."""

import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from topi.bench.report.drawing.sheet import Block, Tile, draw
from topi.bench.report.export import export, published
from topi.bench.report.page.gallery import gather, keep_ratios
from topi.bench.report.page.page_figures import grid, keep_ratio_by_step, quality_against_speed
from topi.bench.report.paper.artefacts import OURS
from topi.bench.report.paper.build import (
    ATTENTION,
    BUILDERS,
    FIGURES,
    NEEDS,
    OPTIONAL,
    build_paper,
    suites_of,
)
from topi.bench.report.paper.captions import CAPTIONS
from topi.bench.report.paper.paper_figures import shown_samples
from topi.bench.report.paper.several_references import NAME as REFERENCES
from topi.bench.report.paper.suite import suites
from topi.bench.report.tables.quality_table import quality_table
from topi.bench.results.probe_run import load_probes
from topi.bench.results.store import Store
from topi.errors import ToPiError

pytestmark = pytest.mark.slow

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[4]
OF_THE_PAGE = ("grid", "keep_ratio", "quality_speed")


@pytest.fixture(scope="module")
def built(paper_report):
    page, paper = paper_report
    return paper, page.parent


def test_all_artefacts_are_built(built):
    paper, out = built
    assert paper.missing == []
    tables = {path.stem for path in (out / "tables").iterdir()}
    assert tables == {*BUILDERS, "table6"}
    for name in tables:
        for end in ("md", "tex", "csv"):
            assert (out / "tables" / f"{name}.{end}").stat().st_size
    figures = {path.name for path in (out / "figures").iterdir()}
    for name in FIGURES:
        assert {f"{name}.png", f"{name}.pdf"} <= figures
    for number in (1, 2, 3):
        assert f"fig{number}_kontext_standin.pdf" in figures
    assert set(CAPTIONS) - {REFERENCES} == {figure.name for figure in paper.figures}


def test_each_table_has_a_part_per_model(built):
    paper, _ = built
    for name in BUILDERS:
        models = [t.title.rpartition(": ")[2] for t in paper.tables if t.name == name]
        assert models == ["kontext_standin", "qwen_standin"]


def test_claims_are_written_for_readers_and_machines(built):
    _, out = built
    content = json.loads((out / "claims.json").read_text(), parse_constant=pytest.fail)
    quality = next(claim for claim in content if claim["name"] == "best-quality")
    assert quality["findings"]["kontext_standin"]["verdict"] == "reproduced"
    assert quality["findings"]["kontext_standin"]["comparisons"][0]["estimate"]["n"] == 16
    assert (out / "claims.md").read_text().startswith("# Claims of the paper")
    assert (out / "claims.csv").stat().st_size


def test_many_cells_do_not_flood_the_page(paper_page):
    html = paper_page.read_text()
    shown = re.findall(r"<h3>Quality and speed.*?</table>", html, re.DOTALL)
    labels = [re.findall(r'<td class="name">([^<]*)</td>', table) for table in shown]
    assert sum(map(len, labels)) == 2 * 9 + 1
    assert {"topi_cover ratio=0.5", "topi tau=0.85", "full cache=teacache"} <= set(labels[0])
    assert 'topi ratio=0.5 layers=random:3"' in html  # but every cell is in a table
    assert html.count("Tokens kept, step by step</h3>") == 3
    assert "topi tau=0.85 − toma" in html  # head to head


def test_every_category_of_the_data_can_be_chosen(paper_page):
    html = paper_page.read_text()
    options = re.search(r'id="by-category">(.*?)</select>', html)[1]
    assert re.findall(r"<option>([^<]*)</option>", options) == [
        "Camera move",
        "Global edit",
        "Implicit change",
        "Local edit",
        "Visual edit",
        "All categories",
    ]
    assert '<tr data-category="Visual edit"' in html


def test_a_store_without_pictures_says_so(tmp_path, write_cell):
    write_cell(tmp_path, "kontext_standin", "topi tau=0.85", pictures=0)
    paper = build_paper(tmp_path, tmp_path / "out")
    said = "\n".join(paper.missing)
    for name in ("fig5", "fig7", "fig9", "fig11"):
        assert f"experiment={name}`." in said
    assert "This store has no model in place of Qwen-Image-Edit." in said
    assert "Run `topi probe`" in said
    assert not {figure.name for figure in paper.figures} & {"fig5", "fig7", "fig9", "fig11"}


def test_the_sizes_of_figures_fit_a_page(built):
    _, out = built
    for name in FIGURES:
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert 1100 <= image.width <= 1200, name  # 6.75 inches
            assert image.height <= 1.4 * image.width, name


def drawn(name, store):
    """A figure of the paper or of the page, by its name."""
    found = suites(store)
    if name in FIGURES:
        return FIGURES[name](store, suites_of(name, found))
    if name in ATTENTION:
        return ATTENTION[name](load_probes(store.root)[0])
    rows = store.rows(found[0].cells)
    if name == "grid":
        return grid(gather(store, rows, per_category=1))
    if name == "keep_ratio":
        return keep_ratio_by_step(keep_ratios(store, rows[rows["label"].str.match("topi tau")]))
    return quality_against_speed(quality_table(rows, store.latency(found[0].cells)))


@pytest.mark.parametrize("name", [*FIGURES, *ATTENTION, *OF_THE_PAGE])
def test_no_text_overlaps(paper_root, name, check_texts):
    check_texts(drawn(name, Store(paper_root)))


def test_a_figure_shows_only_samples_with_every_picture(tmp_path, write_cell):
    labels = ("tomesd", "toma", "topi tau=0.85")
    for label in labels:
        cell = write_cell(tmp_path, "kontext_standin", label, pictures=8)
    store = Store(tmp_path)
    (suite,) = suites(store)
    runs = [suite.run(label) for label in labels]
    assert shown_samples(store, runs) == [f"eval-{i:03d}" for i in range(4)]
    (cell / "images" / "eval-001.png").unlink()
    assert shown_samples(store, runs) == ["eval-000", "eval-005", "eval-002", "eval-003"]


def test_figure_6_says_what_computed_calls_kept(paper_root):
    figure = drawn("fig6", Store(paper_root))
    texts = [text.get_text() for text in figure.texts]
    plt.close(figure)
    assert {
        "ToPi\n1.22×\nkeeps 60%",
        "TeaCache\n1.85×\nkeeps 100%",
        "both\n2.05×\nkeeps 60%",
    } <= set(texts)
    assert "that were computed" in CAPTIONS["fig6"][1]


def test_a_note_stands_below_its_picture(paper_root):
    figure = drawn("fig10", Store(paper_root))
    figure.canvas.draw()
    notes = [text for text in figure.texts if re.fullmatch(r"= full|[\d.]+ dB", text.get_text())]
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert len(notes) == 2 * 4 * 7 and all(note.get_fontsize() >= 6.5 for note in notes)
    for note in notes:
        assert not any(note.get_window_extent().overlaps(box) for box in boxes), note
    plt.close(figure)


def test_axes_have_units_and_infinity_its_place(paper_root):
    store = Store(paper_root)
    figure = drawn("fig10_curve", store)
    psnr, *others = figure.axes
    assert psnr.get_title() == "PSNR↑ (dB)" and others[-1].get_title() == "FLOP-ideal↑ (×)"
    assert {ax.get_xlim() for ax in others} == {psnr.get_xlim()}
    assert [(t.get_text(), t.get_position()[0]) for t in psnr.texts] == [("∞", 1.0)]
    assert not any(ax.texts for ax in others)
    plt.close(figure)
    figure = drawn("fig11", store)
    assert figure.axes[0].get_title().startswith("PSNR↑ (dB)\nΔ")
    plt.close(figure)


def test_figure_7_takes_its_headings_from_a_sample_with_masks(tmp_path, write_cell):
    cell = write_cell(tmp_path, "kontext_standin", OURS)
    (cell / "masks" / "eval-003.json").unlink()  # the last that would be shown
    store = Store(tmp_path)
    figure = drawn("fig7", store)
    texts = [text.get_text() for text in figure.texts]
    plt.close(figure)
    assert [t for t in texts if t.startswith("kept at")] == [
        f"kept at\nt = {t}" for t in (26, 16, 6)
    ]
    assert not [text for text in texts if text.startswith("Local edit")]


def test_figure_7_has_its_models_by_name_and_not_by_age(tmp_path, write_cell):
    for model in ("qwen_standin", "kontext_standin"):
        write_cell(tmp_path, model, OURS)
    found = suites(Store(tmp_path))
    shown = [suite.model for suite in suites_of("fig7", found)]
    assert shown == ["kontext_standin", "qwen_standin"]
    assert shown == [suite.model for suite in suites_of("fig7", found[::-1])]


def test_figure_9_shows_four_samples_of_the_one_category_there_is(paper_root, tmp_path):
    for root in (paper_root, export(paper_root, tmp_path / "small")):
        store = Store(root)
        figure = drawn("fig9", store)
        captions = [t.get_text() for t in figure.texts if t.get_text().startswith("Visual edit: ")]
        plt.close(figure)
        assert len(captions) == 4
        assert {caption.split("“")[1].split()[0] for caption in captions} == {
            "visual_reference",
            "visual_material_transfer",
        }


def test_tiles_of_a_row_are_equally_high():
    wide, square = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 20))
    figure = draw([Block("m", ["a", "b"], [("what", [Tile(wide), Tile(square, "note")])])])
    boxes = [ax.get_position() for ax in figure.axes]
    plt.close(figure)
    assert boxes[0].height == pytest.approx(boxes[1].height)
    assert boxes[0].width == pytest.approx(2 * boxes[1].width)
    assert boxes[1].x1 == pytest.approx(1)


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script of `figures/` on a store: what it printed, and on stderr, and how it exited."""

    def run(name, store, out):
        monkeypatch.setattr(sys, "argv", [name, "--store", str(store), "--out", str(out)])
        status = 0
        try:
            runpy.run_path(str(ROOT / "figures" / f"{name}.py"), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        return *capsys.readouterr(), status

    return run


def test_the_scripts_draw(paper_root, tmp_path, script):
    names = {path.stem for path in (ROOT / "figures").glob("*.py")}
    artefacts = {path.parent.name for path in (ROOT / "experiments").glob("*/paper.csv")}
    assert names == artefacts | {"pareto", "references", "equal_count", "overview"}
    figure, table = tmp_path / "figures" / "fig11.png", tmp_path / "tables" / "table4.md"
    assert script("fig11", paper_root, tmp_path) == (f"{figure}\n", "", 0)
    assert script("table4", paper_root, tmp_path) == (f"{table}\n", "", 0)
    assert {path.suffix for path in table.parent.iterdir()} == {".csv", ".md", ".tex"}


@pytest.mark.parametrize("name", ["fig5", "table4"])
def test_a_script_says_what_the_store_lacks(tmp_path, script, name):
    out, err, status = script(name, tmp_path, tmp_path / "out")
    assert (out, status) == ("", 1)
    assert f"experiment={name}" in err


def test_every_artefact_has_its_folder():
    folders = {path.parent.name for path in (ROOT / "experiments").glob("*/paper.csv")}
    artefacts = {f"table{n}" for n in range(1, 8)} | {f"fig{n}" for n in (1, 2, 3, 5, 6, 7, 9)}
    assert folders == artefacts | {"fig10", "fig11"}
    for name in folders:
        text = (ROOT / "experiments" / name / "README.md").read_text()
        assert "The paper says" in text
        commands = re.findall(r"experiment=(\w+)", text)
        assert set(commands) <= {name}
        assert all((ROOT / "conf" / "experiment" / f"{c}.yaml").is_file() for c in commands)
    curves = {"table1_curves", "table1_equal_speed", "fig10_curve"}
    assert set(NEEDS) - curves - set(OPTIONAL) <= folders


def test_what_is_published_names_no_host_and_no_folder():
    manifest = {
        "job": {"host": "node7", "slurm_job_id": "12"},
        "resumed": [{"job": {"host": "node8"}}],
        "config": {"store": "/srv/mine/results", "data": {"path": "/scratch/AnyEdit-Test"}},
        "label": "toma/ref",
        "count": 4,
    }
    assert published(manifest) == {
        "job": {"slurm_job_id": "12"},
        "resumed": [{"job": {}}],
        "config": {"store": "results", "data": {"path": "AnyEdit-Test"}},
        "label": "toma/ref",
        "count": 4,
    }


@pytest.mark.usefixtures("undrawn")
def test_an_export_says_the_same_and_is_small(paper_root, built, tmp_path):
    paper, files = built
    out = export(paper_root, tmp_path / "small")
    again = tmp_path / "again"
    assert build_paper(out, again).missing == []
    for name in ("claims.json", *(f"tables/{table.name}.csv" for table in paper.tables)):
        assert (again / name).read_bytes() == (files / name).read_bytes(), name
    assert {f.name for f in (again / "figures").glob("fig*")} == {
        f.name for f in (files / "figures").glob("fig*")
    }
    folder = Store(out).root
    for manifest in folder.rglob("manifest.json"):
        assert (content := json.loads(manifest.read_text())) == published(content)
    pictures = list(folder.glob("cells/*/images/*.png"))
    assert 0 < len(pictures) < len(list(Path(paper_root).glob("cells/*/images/*.png")))
    assert export(paper_root, out) == out  # an earlier export is replaced
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ToPiError, match=r"experiments/README\.md"):
        export(tmp_path / "nothing", tmp_path / "other")
