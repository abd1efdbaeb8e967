"""Tables and Figures 1 to 3 from a probe written by hand, without any model."""

import runpy
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from topi.bench.report.paper.attention_figures import mass_by_layer, mass_by_step, token_relevance
from topi.bench.report.paper.build import build_figures
from topi.bench.report.tables.study_tables import attention_facts, calibration_table, probe_table
from topi.bench.results import files
from topi.bench.results.calibration_file import Calibration, Curves, Stability
from topi.bench.results.probe_run import load_probes, probe_run
from topi.bench.results.store import Store
from topi.errors import ToPiError

ROOT = Path(__file__).resolve().parents[3]
TASKS = {
    "camera_move": ("pan", "resize", "rotate", "zoom"),
    "global_edit": ("background", "style", "tone", "weather"),
    "implicit_change": ("light", "season", "time_of_day", "water"),
    "local_edit": ("add", "move", "recolour", "remove", "replace"),
}
STEPS, STACKS, GRID, LAYERS = 40, (19, 38), (16, 16), [13, 18, 31]


def write_probe(store, key="kontext_standin-1", created="2026-01-01", rows=17, count=17):
    """A probe whose attention decays from 0.28 and has its peaks in `LAYERS`."""
    run = probe_run(store, key)
    run.start(
        {
            "model": key.rpartition("-")[0],
            "source": "standin",
            "weights": "feed",
            "stacks": STACKS,
            "layers": LAYERS,
            "tau": 0.85,
            "count": count,
            "steps": STEPS,
            "created": created,
        }
    )
    tasks = [(category, task) for category, names in TASKS.items() for task in names]
    y, x = np.mgrid[: GRID[0], : GRID[1]] / 16
    for index, (category, task) in enumerate(tasks[:rows]):
        rng = np.random.default_rng(index)
        decay = np.linspace(1, 0.5 + 0.03 * index, STEPS)[:, None]
        profile = 0.12 + 0.03 * rng.random(sum(STACKS))
        profile[LAYERS] = 0.25, 0.27, 0.28
        mass = (decay * profile)[None].repeat(2, 0).astype(np.float32)
        centre = 0.2 + 0.6 * np.linspace(0, 1, STEPS)[:, None]
        blob = np.exp(-((x.ravel() - centre) ** 2 + (y.ravel() - 0.5) ** 2) / 0.05)
        total = mass.mean((0, 2))[:, None]
        relevance = total * blob / blob.mean(1, keepdims=True)
        sample = f"s-{index:02d}"
        arrays = {
            "mass": mass,
            "attention": relevance.astype(np.float16),
            "representative": (2 * relevance).astype(np.float16),
            "influence": (relevance / total).astype(np.float16),
            "kept": relevance > total,
            "rank_attention": np.linspace(1, 0.1 + index / 40, STEPS, dtype=np.float32),
            "rank_influence": np.ones(STEPS, np.float32),
        }
        picture = np.stack([255 * x, 255 * y, 0 * x], -1).astype(np.uint8)
        run.add(sample, arrays, [Image.fromarray(picture).resize((128, 128))])
        row = {"sample": sample, "index": index, "category": category, "task": task}
        row |= {"instruction": "x", "branches": ["cond", "uncond"], "grids": [GRID]}
        files.append(run.rows_file, row)
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write_probe(root, "old-1")
    write_probe(root, "old-2", created="2026-02-02")
    write_probe(root, "cut-1", rows=3)
    write_probe(root)
    return root


@pytest.fixture(scope="module")
def run(store):
    return probe_run(store, "kontext_standin-1")


def drawn_text(figure):
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def test_the_latest_complete_probe_of_each_model(store):
    assert [run.key for run in load_probes(store)] == [
        "kontext_standin-1",
        "old-2",
    ]
    weights = {"old": "other", "kontext_standin": "feed"}
    assert [run.key for run in load_probes(store, weights)] == ["kontext_standin-1"]


def test_what_is_read_is_what_was_written(run):
    maps = run.maps("s-04")
    assert maps.mass.shape == (2, STEPS, 57) and maps.attention.shape == (STEPS, 256)
    assert maps.attention.dtype == np.float32 and maps.kept.dtype == bool
    assert len(run.mass) == 17 * 2 * STEPS * 57
    line = run.mass[(run.mass["sample"] == "s-04") & (run.mass["branch"] == "uncond")]
    line = line[(line["step"] == 7) & (line["layer"] == 18)]
    assert line["mass"].item() == maps.mass[1, 7, 18]
    assert (line["category"].item(), line["task"].item()) == ("global_edit", "background")
    # float16, scaled by |C|, keeps the total
    assert np.allclose(maps.attention.mean(1), maps.mass.mean((0, 2)), rtol=1e-3)
    assert run.references("s-04")[0].size == (128, 128)
    ranks = run.rank_correlation().pivot_table(index="sample", columns="step", values="correlation")
    assert ranks.iloc[5, -1] == pytest.approx(0.1 + 5 / 40)
    assert run.rank_correlation("influence")["correlation"].eq(1).all()


def test_facts_equal_a_direct_computation(run):
    mass = np.stack([run.maps(row["sample"]).mass for row in run.rows])
    facts = attention_facts(run)
    total = mass.mean((1, 3))
    assert facts.peak == pytest.approx(total.mean(0).max())
    assert facts.decay.value == pytest.approx((total[:, 30:] - total[:, :10]).mean())
    assert facts.decay.high < 0
    profile = mass.mean((1, 2))
    shares = profile[:, LAYERS].sum(1) / profile.sum(1)
    assert facts.concentration.value == pytest.approx(shares.mean())
    assert facts.uniform == 3 / 57
    pairs = np.corrcoef(profile)[np.triu_indices(17, 1)]
    assert facts.agreement == pytest.approx(pairs.mean(), abs=1e-6)
    assert facts.correlation.value == pytest.approx(np.mean([0.1 + i / 40 for i in range(17)]))


def test_tables_fit_a_terminal(run):
    curves = Curves(12, (1, 2), (0.1, 0.4, 0.3), (0.3, 0.2))
    stable = Stability(100, 0, 0.97, (0.03, 1.0, 0.97))
    calibration = Calibration(curves, {"local_edit": curves}, stable, (), {"model": "m"})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(calibration_table(calibration), probe_table(run))
    text = console.export_text()
    assert "Local edit" in text and "0.400 0.300" in text and "0: 0.100" in text
    assert "97% of 100 bootstrap subsets" in text and "1 100%, 2 97%, 0 3%" in text
    assert "below 0.3" in text and "s-" not in text


def test_figure_1_shows_categories_and_representative_layers(run):
    figure = mass_by_layer(run)
    (ax,) = figure.axes
    lines = [line for line in ax.lines if len(line.get_xdata()) == 57]
    assert [line.get_label() for line in lines] == [
        "Camera move (n=4)",
        "Global edit (n=4)",
        "Implicit change (n=4)",
        "Local edit (n=5)",
    ]
    samples = [row["sample"] for row in run.rows if row["category"] == "camera_move"]
    mean = np.mean([run.maps(name).mass.mean((0, 1)) for name in samples], 0)
    assert np.allclose(lines[0].get_ydata(), mean)
    assert "dual" in drawn_text(figure) and "stand-in" in drawn_text(figure)
    plt.close(figure)


def test_figure_2_follows_single_tokens(run):
    figure = token_relevance(run, "s-02")
    tokens, order = figure.axes[-2:]
    leaders = [line for line in tokens.lines if line.get_label().startswith("token")]
    relevance = run.maps("s-02").attention
    assert len(leaders) == 4
    first = int(relevance[0].argmax())
    assert leaders[0].get_label() == f"token {first}, top at 0"
    assert np.allclose(leaders[0].get_ydata(), relevance[:, first])
    mean = np.mean([run.maps(row["sample"]).rank_attention for row in run.rows], 0)
    assert np.allclose(order.lines[0].get_ydata(), mean)
    plt.close(figure)
    with pytest.raises(ToPiError, match="no sample s-99"):
        token_relevance(run, "s-99")


def test_figure_3_has_a_line_per_task(run):
    figure = mass_by_step(run)
    names = [
        [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
        for ax in figure.axes
    ]
    expected = [[f"{n.replace('_', ' ')} (n=1)" for n in tasks] for tasks in TASKS.values()]
    assert names == expected
    zoom = figure.axes[0].lines[3]
    assert np.allclose(zoom.get_ydata(), run.maps("s-03").mass.mean((0, 2)))
    plt.close(figure)


def test_texts_do_not_overlap_with_many_tasks(run, check_texts):
    for draw in (mass_by_layer, token_relevance, mass_by_step):
        check_texts(draw(run))


def test_figure_3_says_of_how_many_samples_a_line_is_and_how_far_they_spread(paper_root):
    """The fixture has four samples of each of four tasks."""
    (run,) = load_probes(paper_root)
    figure = mass_by_step(run)
    camera = figure.axes[0]
    assert camera.lines[0].get_label() == "resize (n=4)"
    (band,) = camera.collections
    mass = np.stack([run.maps(f"eval-{i:03d}").mass.mean((0, 2)) for i in (0, 4, 8, 12)])
    highest = np.percentile(mass, 90, axis=0).max()
    assert band.get_datalim(camera.transData).y1 == pytest.approx(highest, rel=1e-6)
    assert "paper: below 0.3" in drawn_text(figure)
    plt.close(figure)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_scripts_write_both_formats(number, run, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store"
    (store / "probe").mkdir(parents=True)
    shutil.copytree(run.path, store / "probe" / run.key)
    script = ROOT / "figures" / f"fig{number}.py"
    monkeypatch.setattr(sys, "argv", ["x", "--store", str(store), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code
    written = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert written == {f"fig{number}_kontext_standin.{e}" for e in ("pdf", "png")}
    assert capsys.readouterr().out.strip().endswith(f"fig{number}_kontext_standin.png")


def test_nothing_to_draw_says_what_to_run(tmp_path):
    write_probe(tmp_path, "cut-1", rows=1)
    drawn, (missing,) = build_figures(Store(tmp_path), [], tmp_path / "out", ["fig1"])
    assert not drawn and "topi probe" in missing


def test_damaged_files_are_refused(tmp_path):
    run = write_probe(tmp_path, rows=1)
    path = run.path / "maps" / "s-00.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ToPiError, match="damaged"):
        run.maps("s-00")
    files.write_json(run.path / "manifest.json", {"schema": 99})
    with pytest.raises(ToPiError, match="field schema"):
        _ = probe_run(tmp_path, "kontext_standin-1").manifest
    assert load_probes(tmp_path) == []
