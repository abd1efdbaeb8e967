"""A small store with every cell of the paper's artefacts, written by hand in the on-disk format."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from topi.bench.report.paper.artefacts import all_labels
from topi.bench.results.probe_run import ARRAYS, probe_run

CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")
TASKS = ("resize", "style", "season", "move")
VISUAL = ("visual_reference", "visual_material_transfer")
"""Tasks of `data=mini_edit_plus`; all of the one category `visual_edit`."""
KINDS = {
    "kontext_standin": "kontext",
    "qwen_standin": "qwen_edit",
    "qwen_plus_standin": "qwen_edit_plus",
}
STEPS, ANCHORS, GRID = 28, (2, 12, 22), 8
OURS = ("topi_cover ratio=0.5", "random redraw=step", "checker flip=step")
"""Beside the paper's cells: what ours is compared with."""
QUALITY = (
    # of the first pattern that fits a label: PSNR, FLOP-ideal speed-up, kept
    (r"topi .*cache=teacache", 26.0, 2.1, 0.6),
    (r"cache=teacache", 27.0, 1.9, 1.0),
    (r"topi tau=1$", np.inf, 1.0, 1.0),
    (r"topi tau=([\d.]+)", lambda tau: 14 + 20 * tau, lambda tau: 2.2 - 1.1 * tau, 0.6),
    (r"score=attention", 28.5, 1.25, 0.6),
    (r"score=similarity", 20.0, 1.25, 0.6),
    (r"layers=random", 27.5, 1.25, 0.6),
    (r"layers=all", 29.5, 1.25, 0.6),
    (r"layers=first", 28.0, 1.25, 0.6),
    (r"layers=last", 25.0, 1.25, 0.6),
    (r"dropped=merge", 27.0, 1.25, 0.6),
    (r"update_every=0", 29.0, 1.25, 0.6),
    (r"topi ratio=0\.5", 30.0, 1.25, 0.6),
    (r"topi_cover ratio", 32.0, 1.25, 0.6),
    (r"topi_kv", 25.0, 1.8, 0.6),
    (r"ref_kv", 33.0, 1.6, 1.0),
    (r"full$", np.inf, 1.0, 1.0),
    (r"tome.* ratio=([\d.]+)", lambda r: 30 - 10 * r, lambda r: 1 + 0.5 * r, 1.0),
    (r"toma.* ratio=([\d.]+) merge", lambda r: 29 - 12 * r, lambda r: 1 + r, 1.0),
    (r"toma.* ratio=([\d.]+)", lambda r: 31 - 8 * r, lambda r: 1 + 0.3 * r, 1.0),
    (r"random ratio=([\d.]+)", lambda r: 18 + 10 * r, lambda r: 1.5 - 0.5 * r, 0.7),
    (r"random", 23.0, 1.25, 0.6),
    (r"checker", 24.0, 1.25, 0.6),
    (r"toma.*merge_every=1", 23.0, 1.5, 1.0),
    (r"toma", 27.0, 1.15, 1.0),
    (r"tomesd", 25.0, 1.25, 1.0),
)


def quality(label: str) -> tuple[float, float, float]:
    """PSNR, speed-up and kept share that the fixture gives a label."""
    for pattern, *values in QUALITY:
        if found := re.search(pattern, label):
            number = float(found.group(1)) if found.groups() else None
            return tuple(value(number) if callable(value) else value for value in values)
    raise AssertionError(label)


def method_of(label: str) -> str:
    """What the manifest calls the method; with a cache `topi+teacache`."""
    method, cache = label.split()[0], re.search(r"cache=(\S+)", label)
    if not cache:
        return method
    return cache[1] if method == "full" else f"{method}+{cache[1]}"


def params_of(label: str) -> dict[str, float | int]:
    """Those of the label, and the defaults of the merging methods."""
    words = dict(re.findall(r"(tau|ratio|merge_every)=([\d.]+)", label))
    defaults = {"ratio": 0.5} if label.startswith("tom") else {}
    return defaults | {name: float(value) for name, value in words.items()}


def picture(seed: int, size: int = 64) -> np.ndarray:
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


def lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_cell(
    root: Path,
    model: str,
    label: str,
    *,
    samples: int = 16,
    done: int | None = None,
    weights: str = "feed",
    pictures: int = 4,
    number: int = 0,
) -> Path:
    """Write one cell; `done` of its samples have rows (None: all, and it is complete)."""
    full = root / "full" / f"{model}-{weights}"
    slug = re.sub(r"[^\w.]+", "-", label)
    cell = root / "cells" / f"{model}-{slug}-{weights}"
    cell.mkdir(parents=True)
    settings = {"kind": KINDS[model], "source": "standin", "steps": STEPS}
    manifest = {
        "key": cell.name,
        "created": f"2026-01-01T00:{number // 60:02}:{number % 60:02}",
        "count": samples,
        "model": model,
        "method": method_of(label),
        "label": label,
        "params": params_of(label),
        "full_key": full.name,
        "seed": 0,
        "steps": STEPS,
        "git": {"commit": "0123abc", "dirty": False},
        "versions": {"torch": "2.15.0"},
        "device": {"name": "cpu", "threads": 2},
        "job": {"host": "node1"},
        "weights": weights,
        "full": {"seed": 0, "weights": weights, "data": "d", "model": settings, "device": "cpu"},
        "config": {"lpips": True, "data": {"name": "mini_edit"}},
    }
    (cell / "manifest.json").write_text(json.dumps(manifest))
    psnr, speed, kept = quality(label)
    merged = STEPS * label.startswith("tom")
    if label.startswith("toma") and "merge_every=1" not in label:
        merged = len(range(0, STEPS, 3))
    rows, latency = [], []
    for i in range(samples if done is None else done):
        name, rng = f"eval-{i:03d}", np.random.default_rng([number, i])
        spread = 0.5 * i  # of the samples; equal in all cells, so that pairs see through it
        score = psnr + spread + rng.normal() / 20
        category, task = CATEGORIES[i % 4], TASKS[i % 4]
        if "plus" in model:
            category, task = "visual_edit", VISUAL[i % 2]
        rows.append(
            {"sample": name, "index": i, "category": category, "task": task}
            | {"instruction": f"{task} the disc, and leave the sky as it is", "seed": 0}
            | {"psnr": score, "ssim": min(score / 40, 1), "lpips": max(0.4 - score / 100, 0)}
            | {"keep_ratio": kept, "flop_speedup": speed, "calls": STEPS, "seconds": 2.0}
            | {"merged_calls": merged, "skipped_calls": STEPS // 2 * ("cache=" in label)}
        )
        if i < 4:
            for repeat in range(3):
                seconds = 2 + rng.normal() / 50
                latency.append(
                    {"sample": name, "repeat": repeat, "seconds_full": seconds}
                    | {"seconds_method": seconds / (speed - 0.05)}
                    | {"scoring_seconds": 0.008, "selection_seconds": 0.001}
                )
        if i < pictures:
            noise = 0 if np.isinf(psnr) else 255 / 10 ** (psnr / 20)
            output = picture(i)[:, ::-1]
            save(output + rng.normal(0, noise, output.shape), cell / "images" / f"{name}.png")
            for n in range(2 if "plus" in model else 1):
                save(picture(i + 10 * n), full / "references" / f"{name}_{n}.png")
            save(output, full / "images" / f"{name}.png")
        if label.startswith("topi"):
            n = 2 if "plus" in model else 1
            order = np.argsort(rng.random(n * GRID**2) - (np.arange(n * GRID**2) % GRID > 3))
            anchors = [
                {"step": step, "branch": "cond", "kept": sorted(order[:count].tolist())}
                for step, count in zip(ANCHORS, (n * 40, n * 32, n * 24), strict=True)
            ]
            path = cell / "masks" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"grids": [[GRID, GRID]] * n, "anchors": anchors}))
    lines(cell / "rows.jsonl", rows)
    lines(cell / "latency.jsonl", latency)
    if done is None:
        (cell / "complete.json").write_text("{}")
    return cell


def write_paper_store(root: Path, models=tuple(KINDS), labels=None, **options) -> Path:
    """Every cell of the paper's artefacts and of `OURS` for these models, and a probe."""
    for model in models:
        wanted = ["topi tau=0.85"] if "plus" in model else labels or [*all_labels(), *OURS]
        for number, label in enumerate(wanted):
            write_cell(root, model, label, number=number, **options)
    write_probe(root, models[0])
    return root


def write_probe(root: Path, model: str, samples: int = 16, layers: int = 9) -> None:
    """Attention that decays from 0.25 to 0.1, faster for style, and sits in three layers."""
    run = probe_run(root, f"{model}-0000")
    manifest = {"model": model, "source": "standin", "count": samples, "layers": [1, 4, 7]}
    run.start(
        {**manifest, "weights": "feed", "stacks": [3, 6], "tau": 0.85, "created": "2026-01-01"}
    )
    rows = []
    for i in range(samples):
        rng = np.random.default_rng(i)
        tokens = GRID**2
        low = 0.05 if TASKS[i % 4] == "style" else 0.15
        total = np.linspace(0.25, low, STEPS)
        profile = np.where(np.isin(np.arange(layers), (1, 4, 7)), 2.6, 0.1 * np.arange(layers) / 9)
        mass = total[None, :, None] * profile / profile.mean() * (1 + rng.normal() / 100)
        arrays = {name: np.zeros((STEPS, tokens), np.float16) for name in ARRAYS}
        arrays |= {"mass": mass.astype(np.float32), "kept": np.ones((STEPS, tokens), bool)}
        arrays |= {name: np.linspace(1, 0.4, STEPS, dtype="f4") for name in ARRAYS[-2:]}
        run.add(f"eval-{i:03d}", arrays, [Image.new("RGB", (16, 16))])
        rows.append(
            {"sample": f"eval-{i:03d}", "index": i, "category": CATEGORIES[i % 4]}
            | {"task": TASKS[i % 4], "branches": ["cond"], "grids": [[GRID, GRID]]}
        )
    lines(run.rows_file, rows)
