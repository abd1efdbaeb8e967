"""A small store written by hand in the on-disk format, with pictures that look like something."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")
CELLS = {
    "topi-80": ("topi", "topi tau=0.8", 0.45, 27.0, 1.32),
    "topi-85": ("topi", "topi tau=0.85", 0.55, 29.0, 1.27),
    "topi-90": ("topi", "topi tau=0.9", 0.68, 31.0, 1.2),
    "toma-50": ("toma", "toma", 1.0, 25.5, 1.15),
}
STEPS = 12
ANCHORS = (2, 7)


def scene(seed: int, size: int = 128) -> np.ndarray:
    """A sky, a ground and a disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.stack([120 + 80 * y, 150 + 40 * x, 220 - 120 * y], -1)
    image[y > 0.7] = rng.integers(60, 160, 3)
    centre = rng.uniform(0.3, 0.7, 2)
    image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.03] = rng.integers(40, 255, 3)
    return image


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path)


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_store(root: Path, weights: str = "sha256:feed", per_category: int = 3) -> Path:
    """Write four finished cells over `4 * per_category` samples and return the store's root."""
    model, run = "kontext_standin", f"kontext_standin-{weights[-4:]}"
    samples = [(f"eval-{i:03d}", CATEGORIES[i % 4]) for i in range(4 * per_category)]
    full = root / "full" / run
    for i, (sample, _) in enumerate(samples):
        save(scene(i), full / "references" / f"{sample}_0.png")
        save(scene(i)[:, ::-1], full / "images" / f"{sample}.png")
    for number, (name, (method, label, keep, psnr, speed)) in enumerate(CELLS.items()):
        key = f"{run}-{name}"
        cell = root / "cells" / key
        cell.mkdir(parents=True)
        manifest = {
            "created": f"2026-01-01T00:00:0{number}",
            "count": len(samples),
            "model": model,
            "method": method,
            "label": label,
            "params": {"tau": float(name[-2:]) / 100} if method == "topi" else {"ratio": 0.5},
            "full_key": full.name,
            "seed": 0,
            "steps": STEPS,
            "git": {"commit": "0123abc", "dirty": False},
            "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
            "device": {"name": "cpu", "threads": 2},
            "weights": weights,
            "full": {"seed": 0, "weights": weights, "model": {"steps": STEPS}},
            "config": {"lpips": True},
        }
        (cell / "manifest.json").write_text(json.dumps(manifest))
        rows, latency = [], []
        for i, (sample, category) in enumerate(samples):
            rng = np.random.default_rng([number, i])
            save(
                scene(i)[:, ::-1] + rng.normal(0, 255 / 10 ** (psnr / 20), (128, 128, 3)),
                cell / "images" / f"{sample}.png",
            )
            rows.append(
                {
                    "sample": sample,
                    "index": i,
                    "category": category,
                    "task": "pan",
                    "instruction": f"move the view to the left by {i} tenths, and keep the disc",
                    "seed": 0,
                    "psnr": psnr + rng.normal(),
                    "ssim": psnr / 33,
                    "lpips": 0.4 - psnr / 100 + rng.normal() / 200,
                    "keep_ratio": 1 - (1 - keep) * 8 / STEPS,
                    "flop_speedup": speed,
                    "calls": STEPS,
                }
            )
            if i < 4:
                for repeat in range(3):
                    seconds = 2 + rng.normal() / 50
                    other = seconds / (speed - 0.05) + rng.normal() / 50
                    latency.append(
                        {
                            "sample": sample,
                            "repeat": repeat,
                            "seconds_full": seconds,
                            "seconds_method": other,
                        }
                    )
            if method == "topi":
                order = np.argsort(rng.random(256) - (np.arange(256) % 16 > 7))
                counts = [int(256 * keep), int(256 * (keep - 0.2))]
                anchors = [
                    {"step": step, "branch": "cond", "kept": sorted(order[:count].tolist())}
                    for step, count in zip(ANCHORS, counts, strict=True)
                ]
                path = cell / "masks" / f"{sample}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps({"grids": [[16, 16]], "anchors": anchors}))
        write_lines(cell / "rows.jsonl", rows)
        write_lines(cell / "latency.jsonl", latency)
        (cell / "complete.json").write_text("{}")
    return root


@pytest.fixture(scope="session")
def store_root(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def new_store():
    return write_store


@pytest.fixture(scope="session")
def paper_module():
    """`paper_store.py` beside this file; tests are not a package."""
    spec = importlib.util.spec_from_file_location(
        "paper_store", Path(__file__).with_name("paper_store.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def paper_root(paper_module, tmp_path_factory) -> Path:
    """A store with every cell of the paper's artefacts."""
    return paper_module.write_paper_store(tmp_path_factory.mktemp("paper_store"))


@pytest.fixture(scope="session")
def paper_report(paper_root, tmp_path_factory):
    """The page of that store, and the artefacts of the paper as `build_paper` returned them."""
    from topi.bench.report.page import page

    papers, build_paper = [], page.build_paper
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            page, "build_paper", lambda *given: papers.append(build_paper(*given)) or papers[0]
        )
        path = page.build(paper_root, tmp_path_factory.mktemp("paper_page"), per_category=1)
    return path, papers[0]


@pytest.fixture(scope="session")
def paper_page(paper_report) -> Path:
    return paper_report[0]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and laid out, but their files are empty: for what is said beside them."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture
def write_cell(paper_module):
    return paper_module.write_cell


@pytest.fixture
def write_paper_store(paper_module):
    return paper_module.write_paper_store


def texts_of(figure):
    """Every text that a reader sees: of the figure, its parts, their legends and their axes."""
    legends = [legend for part in (figure, *figure.subfigs) for legend in part.legends]
    texts = [text for part in (figure, *figure.subfigs) for text in part.texts]
    for ax in figure.axes:
        legends += filter(None, [ax.get_legend()])
        texts += [ax.title, *ax.texts]
        if ax.axison:
            texts += [ax.xaxis.label, ax.yaxis.label]
            for axis, at in ((ax.xaxis, 0), (ax.yaxis, 1)):
                low, high = sorted(axis.get_view_interval())
                ticks = axis.get_ticklabels()
                texts += [tick for tick in ticks if low <= tick.get_position()[at] <= high]
    texts += [text for legend in legends for text in legend.get_texts()]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


@pytest.fixture
def check_texts():
    """Checks that no text of a figure overlaps another one or sticks out to a side."""

    import matplotlib.pyplot as plt

    def check(figure):
        figure.canvas.draw()
        texts = texts_of(figure)
        boxes = [text.get_window_extent() for text in texts]
        plt.close(figure)
        assert len(boxes) > 5
        for number, one in enumerate(boxes):
            assert figure.bbox.x0 - 1 <= one.x0, texts[number]
            assert one.x1 <= figure.bbox.x1 + 1, texts[number]
            others = zip(texts[number + 1 :], boxes[number + 1 :], strict=True)
            assert not [(texts[number], text) for text, other in others if one.overlaps(other)]

    return check
