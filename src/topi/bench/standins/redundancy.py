"""What makes reference tokens redundant: trained stand-ins are measured side by side.

`python -m topi.bench.standins.redundancy RUN... --out FOLDER`, each RUN a folder that
`python -m topi.bench.standins` wrote. All see the same samples and noise, so that differences are
paired: `python -m topi.bench.standins.redundancy_table FOLDER/*.json`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from topi.bench.data import EditSample, MiniEdit
from topi.bench.editors.editor import Editor, ModelConfig, load_editor
from topi.bench.editors.standin import FAMILIES
from topi.bench.results import files
from topi.bench.standins.card_measures import pruned_rows
from topi.bench.studies.calibration import calibrate
from topi.bench.studies.held_out import held_out_rows

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
    """Quality of a run's edits, its attention to references, and pruning half of them.

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
                "id": true["sample"],
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


def main(argv: list[str] | None = None) -> None:
    """Measure every run that has not been measured yet."""
    parser = argparse.ArgumentParser(prog="python -m topi.bench.standins.redundancy")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("redundancy"), help="folder")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=48)
    args = parser.parse_args(argv)
    counts = {"evaluation": args.samples, "calibration": min(args.samples, 48)}
    args.out.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        measured = args.out / f"{run.name}.json"
        if measured.exists():
            continue
        if not (run / "recipe.json").exists():
            parser.error(f"{run} is not a finished training run: it has no recipe.json")
        recipe = json.loads((run / "recipe.json").read_text())
        factor, references = recipe["enlarge"], recipe.get("references", 1)
        editor = open_run(run, args.size * factor, args.steps)
        seen = [
            [enlarge(s, factor) for s in MiniEdit(split, args.size, count, None, references)]
            for split, count in counts.items()
        ]
        files.write_json(measured, measure(editor, *seen))
        print(f"wrote {measured}")


if __name__ == "__main__":
    main()
