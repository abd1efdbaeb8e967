"""What makes reference tokens redundant? Trained stand-ins side by side.

`python -m topi.evaluation.redundancy RUN... --out redundancy.md`, each RUN a folder that
`python -m topi.training` wrote, or the JSON of what was measured of it; the first one is the
control. All see the same samples and noise, so differences are paired.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from topi.data import EditSample, MiniEdit
from topi.evaluation.calibration import calibrate
from topi.evaluation.held_out import held_out_rows
from topi.evaluation.model_card import pruned_rows
from topi.models.editor import Editor, ModelConfig, load_editor
from topi.models.standin import FAMILIES
from topi.report.statistics import bootstrap
from topi.results import files

TAU = 0.85
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
    """How well a run edits, how much it attends to references, and what half of them are worth.

    `samples` of the result has, per sample, the PSNR in dB of the full output to the true edit
    (`truth`), ToPi's mean keep ratio at `TAU` (`keep`) and the PSNR to the full output of what
    each of `RULES` keeps.
    """
    layers = calibrate(editor, calibration)
    editor.transformer.register_to_config(representative_layers=list(layers.layers))
    truth = held_out_rows(editor, samples)
    rules = {"keep": ("topi", {"tau": TAU})} | RULES
    rows = pruned_rows(editor, samples, editor.config.front_layers, rules)
    keep = rows.pop("keep")
    return {
        "run": editor.name,
        "weights": editor.fingerprint(),
        "layers": list(layers.layers),
        "by_layer": list(layers.overall.by_layer),
        "by_step": list(layers.overall.by_step),
        "samples": [
            {
                "id": true["id"],
                "category": true["category"],
                "truth": true["psnr"],
                "keep": kept["keep_ratio"],
                **dict(zip(rows, (row["psnr"] for row in each), strict=True)),
            }
            for true, kept, *each in zip(truth, keep, *rows.values(), strict=True)
        ],
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


def column(run: Mapping, name: str) -> np.ndarray:
    """Of each sample, a number."""
    return np.array([sample[name] for sample in run["samples"]])


def lead(run: Mapping, rule: str) -> np.ndarray:
    """PSNR in dB that the influence score is ahead of another rule with, per sample."""
    return column(run, "influence") - column(run, rule)


def estimate(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval, of dB."""
    found = bootstrap(values)
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def tables(measured: Sequence[Mapping]) -> str:
    """Markdown: what each run is like, and what half of its reference tokens are worth.

    Differences are paired by sample, in dB; the first run is the control.
    """
    control = measured[0]
    like = [["run", "PSNR to the true edit", "− control", "mean S", "highest S", "S, first → last"]]
    like[0] += ["three layers hold", f"keep at tau {TAU}"]
    half = [["run", "influence", *(f"influence − {rule}" for rule in list(RULES)[1:])]]
    half[0] += ["influence − random, against the control's"]
    for run in measured:
        truth, by_layer = column(run, "truth"), np.array(run["by_layer"])
        compared = run is not control
        like.append(
            [
                run["run"],
                f"{truth.mean():.1f}",
                estimate(truth - column(control, "truth")) if compared else "",
                f"{by_layer.mean():.2f}",
                f"{by_layer.max():.2f} (layer {by_layer.argmax()} of {len(by_layer)})",
                f"{run['by_step'][0]:.2f} → {run['by_step'][-1]:.2f}",
                f"{np.sort(by_layer)[-3:].sum() / by_layer.sum():.0%}",
                f"{column(run, 'keep').mean():.2f}",
            ]
        )
        half.append(
            [
                run["run"],
                f"{column(run, 'influence').mean():.1f}",
                *(estimate(lead(run, rule)) for rule in list(RULES)[1:]),
                estimate(lead(run, "random") - lead(control, "random")) if compared else "",
            ]
        )
    return markdown(like) + "\n" + markdown(half)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure every run that has not been measured yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m topi.evaluation.redundancy")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("redundancy.md"))
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=48)
    args = parser.parse_args(argv)
    counts = {"evaluation": args.samples, "calibration": min(args.samples, 48)}
    measured = []
    for run in args.runs:
        kept = run
        if run.suffix != ".json":
            kept = run / f"redundancy-{args.size}-{args.steps}-{args.samples}.json"
        if not kept.exists():
            if not (run / "recipe.json").exists():
                parser.error(f"{run} is no finished training run: it has no recipe.json")
            recipe = json.loads((run / "recipe.json").read_text())
            factor, references = recipe["enlarge"], recipe.get("references", 1)
            editor = open_run(run, args.size * factor, args.steps)
            seen = [
                [enlarge(s, factor) for s in MiniEdit(split, args.size, count, None, references)]
                for split, count in counts.items()
            ]
            files.write_json(kept, measure(editor, *seen))
        measured.append(json.loads(kept.read_text()))
    args.out.write_text(tables(measured))
    print(tables(measured))


if __name__ == "__main__":
    main()
