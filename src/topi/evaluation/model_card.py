"""The model card of the stand-in, measured anew by `python -m topi.evaluation.model_card`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.progress import track

from topi.data import CATEGORIES, EditSample, MiniEdit
from topi.evaluation.calibration import calibrate, ship
from topi.evaluation.held_out import held_out_rows, psnr
from topi.methods import make_method
from topi.models.editor import Editor, ModelConfig, load_editor
from topi.models.standin import weights_folder
from topi.results.calibration import Calibration

TAUS = (0.8, 0.85, 0.9)
#: What keeps half of the reference tokens, and how: the paper's score, its ablations, the floors.
HALF = {
    "influence (Eq. 9)": ("topi", {"ratio": 0.5}),
    "attention only": ("topi", {"ratio": 0.5, "score": "attention"}),
    "feature similarity": ("topi", {"ratio": 0.5, "score": "similarity"}),
    "lowest influence": ("topi", {"ratio": 0.5, "order": "lowest"}),
    "random, redrawn at anchors": ("random", {"ratio": 0.5}),
    "random, fixed": ("random", {"ratio": 0.5, "fixed": True}),
    "checkerboard, fixed": ("checker", {}),
    "checkerboard, flipped at anchors": ("checker", {"flip": "anchor"}),
}


def _by_category(rows: Sequence[Mapping], column: str) -> dict[str, float | None]:
    """Mean of a column per category, over the rows that have it."""
    means: dict[str, float | None] = {}
    for category in CATEGORIES:
        values = [r[column] for r in rows if r["category"] == category and r[column] is not None]
        means[category] = fmean(values) if values else None
    return means


def quality(rows: Sequence[Mapping]) -> dict:
    """Mean PSNR to the true edit per category and per task, with that of the copied reference."""
    columns = [c for c in rows[0] if "psnr" in c]
    tasks: dict[str, dict[str, float | None]] = {}
    for category in CATEGORIES:
        for task in dict.fromkeys(r["task"] for r in rows if r["category"] == category):
            chosen = [r for r in rows if r["category"] == category and r["task"] == task]
            tasks[f"{category}/{task}"] = {
                c: fmean([r[c] for r in chosen if r[c] is not None] or [float("nan")])
                for c in ("psnr", "copy_psnr", "psnr_changed")
            }
    return {
        "samples": len(rows),
        "by_category": {c: _by_category(rows, c) for c in columns},
        "by_task": tasks,
    }


def pruning(editor: Editor, samples: Sequence[EditSample], front_layers: int) -> dict:
    """Keep ratio at each tau and PSNR to the full output at half of the tokens, per category."""
    methods = {f"tau={tau}": ("topi", {"tau": tau}) for tau in TAUS} | HALF
    rows: dict[str, list[dict]] = {label: [] for label in methods}
    for seed, sample in enumerate(track(samples, f"pruning {editor.name}")):
        full = np.asarray(editor.edit(sample, seed))
        for label, (name, options) in methods.items():
            method = make_method(name, front_layers=front_layers, **options)
            with method(editor.pipe):
                image = np.asarray(editor.edit(sample, seed))
            pruned = [r.keep_ratio for r in method.trace if r.kept is not None]
            rows[label].append(
                {
                    "category": sample.category,
                    "psnr": psnr(image, full),
                    "keep_ratio": fmean(pruned or [1.0]),
                }
            )
    influence = np.array([r["psnr"] for r in rows["influence (Eq. 9)"]])

    def summary(label: str) -> dict:
        values = np.array([r["psnr"] for r in rows[label]])
        difference = values - influence
        return {
            "psnr": _by_category(rows[label], "psnr") | {"all": float(values.mean())},
            "keep_ratio": _by_category(rows[label], "keep_ratio"),
            "minus_influence": float(difference.mean()),
            "standard_error": float(difference.std(ddof=1) / len(difference) ** 0.5),
        }

    return {
        "samples": len(samples),
        "tau": {label: summary(label) for label in methods if label not in HALF},
        "half": {label: summary(label) for label in HALF},
    }


def attention(calibration: Calibration) -> dict:
    """What the card tells of a calibration; calibration.json has the rest."""
    overall, categories = calibration.overall, calibration.by_category
    return {
        "samples": overall.samples,
        "layers": list(overall.layers),
        "by_layer": list(overall.by_layer),
        "by_step": list(overall.by_step),
        "by_category": {name: list(each.by_layer) for name, each in categories.items()},
        "stability": asdict(calibration.stability),
    }


def measure(
    editor: Editor, calibration: Calibration, held_out: int = 256, samples: int = 32
) -> dict:
    """All measured parts of the card; leaves the calibrated layers registered."""
    size = editor.config.height
    editor.transformer.register_to_config(representative_layers=list(calibration.layers))
    evaluation = MiniEdit("evaluation", size)
    rows = held_out_rows(editor, _take(evaluation, held_out))
    return {
        "model": editor.name,
        "weights": editor.fingerprint(),
        "parameters": sum(p.numel() for p in editor.transformer.parameters()),
        "steps": editor.steps,
        "size": size,
        "quality": quality(rows),
        "calibration": attention(calibration),
        "pruning": pruning(editor, list(_take(evaluation, samples)), editor.config.front_layers),
    }


def _take(data: MiniEdit, count: int):
    return (data[i] for i in range(min(count, len(data))))


def render(card: Mapping, recipe: Mapping) -> str:
    """The card as Markdown, from `measure` and the recipe of the training run."""
    templates = Environment(
        loader=PackageLoader("topi.evaluation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("model_card.md.j2").render(card=card, recipe=recipe)


def write(card: Mapping, calibration: Calibration, folder: Path) -> None:
    """card.json, README.md and the calibration beside the weights.

    The recipe of the training run is read from `folder/recipe.json`.
    """
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(render(card, recipe))
    ship(calibration, folder)


def main(argv: list[str] | None = None) -> None:
    """Measure the shipped stand-in and write its card."""
    parser = argparse.ArgumentParser(prog="python -m topi.evaluation.model_card")
    parser.add_argument("--held-out", type=int, default=256, help="samples for the true edits")
    parser.add_argument("--calibration", type=int, default=48, help="samples for the layers")
    parser.add_argument("--samples", type=int, default=32, help="samples for pruning")
    parser.add_argument("--steps", type=int, default=28)
    args = parser.parse_args(argv)
    config = ModelConfig(
        "kontext_standin", "kontext", "standin", args.steps, height=128, width=128, front_layers=2
    )
    editor = load_editor(config)
    data = MiniEdit("calibration", config.height, args.calibration)
    calibration = calibrate(editor, data, more={"data": data.fingerprint()})
    write(measure(editor, calibration, args.held_out, args.samples), calibration, weights_folder())
    print(f"wrote {weights_folder() / 'README.md'}")


if __name__ == "__main__":
    main()
