"""The model card of a stand-in, measured anew by `python -m topi.bench.standins.model_card MODEL`.

It takes hours of a CPU. A killed run continues at the next sample when it is started again.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from topi.bench.config.compose import composed
from topi.bench.config.schema import read_config
from topi.bench.data import CATEGORIES, MiniEdit
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.bench.editors.editor import Editor, load_editor
from topi.bench.editors.standin import weights_folder
from topi.bench.results import files
from topi.bench.results.calibration_file import (
    CONCENTRATED,
    CONSISTENT,
    PAPER_LIMIT,
    Calibration,
    read_calibration,
)
from topi.bench.results.keys import digest
from topi.bench.runs.resume import alone
from topi.bench.standins.card_measures import attention, measure, two_references
from topi.bench.standins.card_pictures import (
    picture_grid,
    recorded_edits,
    recording,
    two_reference_grid,
)
from topi.bench.studies.calibration import calibrate, ship
from topi.errors import ToPiError

#: Target values of a stand-in: PSNR in dB to the true edit in every category; for local edits, PSNR
#: inside and outside of the change and the share made as asked.
BARS = {
    "kontext_standin": {"psnr": 29.0, "changed": 23.0, "unchanged": 36.0, "made": 0.85},
    "qwen_standin": {"psnr": 28.0, "changed": 22.0, "unchanged": 35.0, "made": 0.85},
}
#: With a second image: PSNR of every kind of edit, share of the taken things that are right.
TWO_REFERENCES_BAR = {"psnr": 25.0, "made": 0.7}
#: Least and largest lead of influence over a rule in Table 3, in dB PSNR over four categories.
PAPER_LEADS = {
    "attention only": (0.16, 0.61),
    "feature similarity": (6.7, 12.38),
    "random, redrawn at anchors": None,
}
#: Stand-ins whose weights also serve a pipeline for several references, and that model's name.
SEVERAL = {"qwen_standin": "qwen_plus_standin"}


def bars(card: Mapping) -> list[dict[str, object]]:
    """Target values of the model and the measured ones: name, unit, bar, measured.

    Empty for a model without target values. Values that were not measured are left out.
    """
    if card["model"] not in BARS:
        return []
    bar, quality = BARS[card["model"]], card["quality"]
    of = quality["by_category"]
    rows = [(name, "dB", bar["psnr"], of["psnr"][name]) for name in CATEGORIES]
    for region in ("changed", "unchanged"):
        measured = of[f"psnr_{region}"]["local_edit"]
        rows.append((f"local_edit, {region} pixels", "dB", bar[region], measured))
    rows.append(("local_edit, made as asked for", "%", bar["made"], quality["made"]))
    if two := card.get("two_references"):
        aim = TWO_REFERENCES_BAR
        for kind, row in two["by_task"].items():
            rows.append((f"two references, {kind}", "dB", aim["psnr"], row["psnr"]))
        rows.append(("two references, right thing", "%", aim["made"], two["made"]))
    return [
        {"name": name, "unit": unit, "bar": aim * scale, "measured": measured * scale}
        for name, unit, aim, measured in rows
        if measured is not None
        for scale in [100 if unit == "%" else 1]
    ]


def beside_the_paper(card: Mapping) -> list[dict[str, str]]:
    """Statements of the paper on FLUX.1-Kontext and Qwen-Image-Edit beside those of this model.

    Each has `what`, `here`, `paper` and `alike`: yes, no, "not significant", or empty where the
    paper says nothing.
    """
    curves, half = card["calibration"], card["pruning"]["half"]
    by_layer, by_step, chosen = curves["by_layer"], np.array(curves["by_step"]), [*curves["layers"]]
    ratio = fmean(by_layer[k] for k in chosen) / np.median(np.delete(by_layer, chosen))
    highest = [np.argsort(layers)[-len(chosen) :] for layers in curves["by_category"].values()]
    shared = min(len({*layers} & {*chosen}) for layers in highest)
    quarter = max(len(by_step) // 4, 1)
    early, late, peak = by_step[:quarter].mean(), by_step[-quarter:].mean(), by_step.max()
    rows = [
        (
            "the highest layers' attention over the median of the others",
            f"{ratio:.1f} times",
            f"few layers (Fig. 1; here called so from {CONCENTRATED:g} times on)",
            _yes(ratio >= CONCENTRATED),
        ),
        (
            "the least number of these layers among the highest of a category",
            f"{shared} of {len(chosen)}",
            "the same for every task (3.2)",
            _yes(shared >= CONSISTENT * len(chosen)),
        ),
        (
            "bootstrap subsets of the samples that choose the same set",
            f"{curves['stability']['same_set']:.0%} of {curves['stability']['subsets']}",
            "not reported",
            "",
        ),
        (
            "attention to references, first and last quarter of the steps",
            f"{early:.2f}, {late:.2f}",
            "decays (Fig. 3)",
            _yes(late < early),
        ),
        (
            "the highest of any step",
            f"{peak:.2f}",
            f"below {PAPER_LIMIT} (Fig. 3)",
            _yes(peak < PAPER_LIMIT),
        ),
    ]
    for rival, paper in PAPER_LEADS.items():
        lead, error = -half[rival]["minus_influence"], half[rival]["standard_error"]
        apart = _yes(lead > 0) if abs(lead) > 2 * error else "not significant"
        says = f"{paper[0]:+.1f} to {paper[1]:+.1f} dB (Table 3)" if paper else "not compared"
        what = f"half of the tokens: influence ahead of {rival}"
        rows.append((what, f"{lead:+.1f} ± {error:.1f} dB", says, apart if paper else ""))
    return [dict(zip(("what", "here", "paper", "alike"), row, strict=True)) for row in rows]


def _yes(alike: bool) -> str:
    return "yes" if alike else "no"


def render(card: Mapping, recipe: Mapping, curves: bool = False, remarks: str = "") -> str:
    """The card as Markdown, from `measure` and the recipe of the training run.

    Args:
        curves: show the learning curves that lie beside it.
        remarks: a person's notes on the pictures.
    """
    templates = Environment(
        loader=PackageLoader("topi.bench.standins"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("model_card.md.j2").render(
        card=card,
        recipe=recipe,
        curves=curves,
        remarks=remarks.strip(),
        bars=bars(card),
        beside=beside_the_paper(card),
    )


def write(card: Mapping, grid: Image.Image, folder: Path) -> None:
    """card.json, README.md and edits.png beside the weights."""
    grid.save(folder / "edits.png", optimize=True)
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(rendered(folder))


def rendered(folder: Path) -> str:
    """The card as Markdown, from card.json, recipe.json and remarks.md beside the weights.

    remarks.md is written by hand and optional.
    """
    card, recipe = (json.loads((folder / f"{n}.json").read_text()) for n in ("card", "recipe"))
    remarks = folder / "remarks.md"
    seen = remarks.read_text() if remarks.exists() else ""
    return render(card, recipe, (folder / "curves.png").exists(), seen)


def calibrated(editor: Editor, data: MiniEdit) -> Calibration:
    """The shipped calibration, or a new one if it has other weights or fewer samples.

    `topi calibrate --ship` writes it too, and can be resumed.
    """
    file = editor.calibration_file
    try:
        shipped = read_calibration(file)
        if shipped.overall.samples >= len(data) and shipped.layers_for(editor.fingerprint()):
            return shipped
    except ToPiError:
        pass  # there is none, or it is of other weights
    calibration = calibrate(editor, data, more={"data": data.fingerprint()})
    ship(calibration, file)
    return calibration


def settings_key(
    editors: Sequence[Editor], calibration: Calibration, held_out: int, samples: int
) -> str:
    """A key of all that the rows of `measure` depend on: weights, settings, layers, counts."""
    measured = [(editor.fingerprint(), asdict(editor.config)) for editor in editors]
    return f"{editors[0].name}-{digest([measured, calibration.layers, held_out, samples])}"


def _editor(model: str) -> Editor:
    return load_editor(read_config(composed([f"model={model}"])).model)


def main(argv: list[str] | None = None) -> None:
    """Measure a shipped stand-in and write its card."""
    parser = argparse.ArgumentParser(prog="python -m topi.bench.standins.model_card")
    parser.add_argument("model", nargs="?", default="kontext_standin")
    parser.add_argument("--held-out", type=int, default=512, help="samples for the true edits")
    parser.add_argument("--calibration", type=int, default=48, help="samples for the layers")
    parser.add_argument("--samples", type=int, default=32, help="samples for pruning")
    text = "folder for the finished samples, from which a killed run continues"
    parser.add_argument("--store", type=Path, default=Path("results"), help=text)
    args = parser.parse_args(argv)
    if args.held_out < 16 or min(args.calibration, args.samples) < len(CATEGORIES):
        parser.error("every category needs a sample: --held-out 16, --calibration 4, --samples 4")
    editor, *several = map(_editor, filter(None, (args.model, SEVERAL.get(args.model))))
    data = MiniEdit("calibration", editor.config.height, args.calibration)
    calibration = calibrated(editor, data)
    key = settings_key([editor, *several], calibration, args.held_out, args.samples)
    kept = args.store / "model_card" / key
    with alone(files.lock(kept / ".lock"), f"measurement of {key}"):
        card = measure(editor, calibration, args.held_out, args.samples, kept)
        folder = weights_folder(args.model)
        for plus in several:
            card["two_references"] = two_references(plus, args.held_out // 4, kept)
            data = MiniEditPlus("calibration", editor.config.height, args.calibration)
            card["two_references"]["calibration"] = attention(calibrated(plus, data))
            two_reference_grid(plus).save(folder / "two_references.png", optimize=True)
            recorded_edits(plus).save(recording(plus.name, folder), optimize=True)
        recorded_edits(editor).save(recording(args.model, folder), optimize=True)
        write(card, picture_grid(editor, card["shown"]), folder)
        shutil.rmtree(kept)
    print(f"wrote {folder / 'README.md'}")


if __name__ == "__main__":
    try:
        main()
    except ToPiError as error:
        sys.exit(f"topi: {error}")
