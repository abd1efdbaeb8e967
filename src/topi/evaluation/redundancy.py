"""What makes reference tokens redundant? Trained stand-ins side by side.

`python -m topi.evaluation.redundancy RUN... --out redundancy.md`, each RUN a folder that
`python -m topi.training` wrote. All see the same samples and noise, so differences are paired.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from topi.data import EditSample, MiniEdit
from topi.evaluation.calibration import calibrate
from topi.evaluation.held_out import held_out_rows
from topi.evaluation.model_card import pruning, quality
from topi.models.editor import Editor, ModelConfig, load_editor
from topi.models.standin import FAMILIES
from topi.results import files

RULES = {
    "influence": ("topi", {"ratio": 0.5}),
    "lowest influence": ("topi", {"ratio": 0.5, "order": "lowest"}),
    "random": ("random", {"ratio": 0.5}),
    "checkerboard": ("checker", {"flip": "anchor"}),
}
"""What keeps half of the tokens; all renew their choice at the same anchors."""


def open_run(folder: Path, size: int, steps: int) -> Editor:
    """The editor that a training run left in `folder`."""
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    kind = next(k for k, family in FAMILIES.items() if family.transformer.__name__ == name)
    guidance = {} if kind == "kontext" else {"true_cfg": 2.0, "negative_prompt": " "}
    weights = {"weights": str(folder.resolve())}
    settings = {"steps": steps, "height": size, "width": size, "front_layers": 2}
    config = ModelConfig(folder.name, kind, "standin", **settings, **guidance, options=weights)
    return load_editor(config)


def measure(
    editor: Editor, samples: Sequence[EditSample], calibration: Sequence[EditSample]
) -> dict:
    """How well a run edits, how much it attends to references, and what half of them are worth."""
    layers = calibrate(editor, calibration)
    editor.transformer.register_to_config(representative_layers=list(layers.layers))
    truth = quality(held_out_rows(editor, samples))["by_category"]["psnr"]
    pruned = pruning(editor, samples, editor.config.front_layers, RULES)
    return {
        "run": editor.name,
        "weights": editor.fingerprint(),
        "psnr": fmean(v for v in truth.values() if v is not None),
        "psnr_by_category": truth,
        "layers": list(layers.layers),
        "mass": float(np.mean(layers.overall.by_layer)),
        "peak": float(np.max(layers.overall.by_layer)),
        **pruned,
    }


def enlarge(sample: EditSample, factor: int) -> EditSample:
    """The same sample with all its images enlarged `factor` times."""

    def larger(image: Image.Image) -> Image.Image:
        return image.resize((image.width * factor, image.height * factor), Image.BICUBIC)

    return replace(
        sample,
        references=tuple(map(larger, sample.references)),
        target=larger(sample.target),
        size=(sample.target.height * factor, sample.target.width * factor),
    )


def table(measured: Sequence[Mapping]) -> str:
    """Markdown: one row per run. Differences are to influence, in dB, with their standard error."""
    heads = ["run", "to truth", "mean S", "highest S", "keep at tau 0.85", "influence"]
    heads += [f"{rule} − influence" for rule in RULES if rule != "influence"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for run in measured:
        half = run["half"]
        cells = [run["run"], f"{run['psnr']:.1f}", f"{run['mass']:.2f}", f"{run['peak']:.2f}"]
        cells += [f"{fmean(run['tau']['tau=0.85']['keep_ratio'].values()):.2f}"]
        cells += [f"{half['influence']['psnr']['all']:.1f}"]
        cells += [
            f"{half[rule]['minus_influence']:+.1f} ± {half[rule]['standard_error']:.1f}"
            for rule in RULES
            if rule != "influence"
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure every run that has not been measured yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m topi.evaluation.redundancy")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("redundancy.md"))
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=48)
    args = parser.parse_args(argv)
    samples = list(MiniEdit("evaluation", args.size, args.samples))
    calibration = list(MiniEdit("calibration", args.size, min(args.samples, 48)))
    measured = []
    for folder in args.runs:
        kept = folder / f"redundancy-{args.size}-{args.steps}-{args.samples}.json"
        if not kept.exists():
            factor = json.loads((folder / "recipe.json").read_text())["enlarge"]
            editor = open_run(folder, args.size * factor, args.steps)
            seen = [[enlarge(s, factor) for s in data] for data in (samples, calibration)]
            files.write_json(kept, measure(editor, *seen))
        measured.append(json.loads(kept.read_text()))
    args.out.write_text(table(measured))
    print(table(measured))


if __name__ == "__main__":
    main()
