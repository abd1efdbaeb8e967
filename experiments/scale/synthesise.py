"""A store of many finished cells, written as a sweep writes it but with drawn numbers.

    python experiments/scale/synthesise.py --cells 1000 --store /tmp/scale/1000

Four models, 50 configurations of five methods, as many seeds as the cells make; 200 samples and 4
timed pairs in each cell. No pictures. Five cells in a thousand are
not finished.
"""

import argparse
import json
import random
from itertools import islice, product
from pathlib import Path

MODELS = ("flux_kontext", "flux_kontext_nf4", "qwen_image_edit", "qwen_image_edit_plus")
METHODS = ("topi", "tomesd", "toma", "random", "checker")
STRENGTHS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
CATEGORIES = ("camera_move", "global_edit", "implicit_change", "local_edit")
SAMPLES, PAIRS = 200, 4
DRAWN = 20_000
"""Different sets of numbers: cells take them in turn."""


def rows_without_scores(seed: int) -> list[str]:
    """What all cells of a seed say of each sample."""
    return [
        json.dumps(
            {
                "sample": f"sample-{i:05d}",
                "index": i,
                "category": CATEGORIES[i % 4],
                "task": f"task-{i % 25}",
                "instruction": f"make the object number {i} a little bluer than the others",
                "seed": seed,
                "n_reference": 4096,
                "calls": 40,
            }
        )[:-1]
        for i in range(SAMPLES)
    ]


def scores(strength: float, dice: random.Random) -> str:
    """The scores of a sample: the stronger the method keeps, the closer to the full output."""
    psnr = 20 + 15 * strength + dice.gauss(0, 2)
    drawn = {
        "psnr": psnr,
        "ssim": min(1.0, psnr / 40),
        "lpips": 1 / psnr,
        "keep_ratio": strength,
        "pruned_keep_ratio": strength * dice.random(),
        "flop_speedup": 1.9 - 0.8 * strength,
        "anchor_calls": 4,
        "pruned_calls": 34,
        "merged_calls": 0,
        "skipped_calls": 0,
        "scoring_seconds": 0.1 * dice.random(),
        "selection_seconds": 0.01 * dice.random(),
        "seconds": 40 + dice.random(),
    }
    return ", " + json.dumps(drawn)[1:] + "\n"


def pairs(strength: float, dice: random.Random) -> str:
    """The timed pairs of a cell."""
    lines = (
        {
            "sample": f"sample-{i:05d}",
            "repeat": 0,
            "seconds_full": 40 + dice.gauss(0, 0.3),
            "seconds_method": (40 + dice.gauss(0, 0.3)) / (1.8 - 0.8 * strength),
            "scoring_seconds": 0.1,
            "selection_seconds": 0.01,
        }
        for i in range(PAIRS)
    )
    return "".join(json.dumps(line) + "\n" for line in lines)


def manifest(key: str, number: int, model: str, method: str, strength: float, seed: int) -> dict:
    """As long as that of a real cell, with the facts that reports read."""
    settings = {"kind": "qwen_edit" if "qwen" in model else "kontext", "source": "hub", "steps": 40}
    settings |= {"height": 1024, "width": 1024, "dtype": "bfloat16", "guidance": 2.5}
    return {
        "key": key,
        "created": f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}",
        "model": model,
        "method": method,
        "label": f"{method} ratio={strength:g}",
        "params": {"ratio": strength, "front_layers": 10, "layers": [13, 18, 31]},
        "full_key": f"{model}-{seed:04d}",
        "seed": seed,
        "steps": 40,
        "count": SAMPLES,
        "weights": model,
        "data": "drawn",
        "git": {"commit": "0" * 40, "dirty": False},
        "code": "0" * 16,
        "lock": "0" * 16,
        "versions": {"python": "3.11", "torch": "2.15.0", "diffusers": "0.42.1"},
        "device": {"name": "drawn", "count": 1, "threads": 1},
        "job": {"host": f"node{number % 64}", "slurm_job_id": str(number)},
        "full": {"schema": 1, "model": settings, "weights": model, "data": "drawn", "seed": seed}
        | {"device": "drawn"},
        "config": {"model": settings, "method": {"name": method}, "seed": seed}
        | {"data": {"name": "anyedit", "path": "/scratch/AnyEdit-Test", "count": SAMPLES}},
    }


def synthesise(store: Path, cells: int, samples: int = SAMPLES) -> None:
    """Write the store.

    Args:
        store: a folder that is not there yet.
        cells: how many.
        samples: in each, at most `SAMPLES`.
    """
    dice = random.Random(0)
    drawn = {s: [scores(s, dice) for _ in range(DRAWN)] for s in STRENGTHS}
    every = product(range(cells), MODELS, METHODS, STRENGTHS)
    rows: list[str] = []
    for number, (seed, model, method, strength) in enumerate(islice(every, cells)):
        if number % (len(MODELS) * len(METHODS) * len(STRENGTHS)) == 0:
            rows = rows_without_scores(seed)[:samples]
        key = f"{model}-{method}-{number:016x}"
        cell = store / "cells" / key
        cell.mkdir(parents=True)
        about = manifest(key, number, model, method, strength, seed) | {"count": samples}
        (cell / "manifest.json").write_text(json.dumps(about, indent=2))
        finished = number % 200 != 7
        own, start = drawn[strength], dice.randrange(DRAWN)
        lines = [row + own[(start + i) % DRAWN] for i, row in enumerate(rows)]
        (cell / "rows.jsonl").write_text("".join(lines if finished else lines[: samples // 2]))
        (cell / "latency.jsonl").write_text(pairs(strength, dice) if finished else "")
        if finished:
            (cell / "complete.json").write_text("{}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    options = parser.parse_args()
    synthesise(options.store, options.cells)
