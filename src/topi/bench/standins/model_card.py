"""The model card of a stand-in, measured anew by `python -m topi.bench.standins.model_card MODEL`.

That takes hours of a CPU; a killed run goes on at the next sample when it is started again.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from hydra import compose, initialize_config_dir
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf
from PIL import Image

from topi.bench.config.schema import conf_folder
from topi.bench.data import CATEGORIES, EditSample, MiniEdit
from topi.bench.data.edit_check import check_edit, check_taken
from topi.bench.data.mini_edit import label as shape_label
from topi.bench.data.mini_edit_plus import EDITS, MiniEditPlus
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
from topi.bench.studies.calibration import calibrate, ship
from topi.bench.studies.held_out import held_out_rows, psnr
from topi.bench.studies.observation import collect
from topi.errors import ToPiError
from topi.methods import make_method

TAUS = (0.8, 0.85, 0.9, 0.95)
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
#: What a stand-in has to reach: PSNR in dB to the true edit in every
#: category; of local edits, that inside and outside of the change and the share made as asked.
BARS = {
    "kontext_standin": {"psnr": 29.0, "changed": 23.0, "unchanged": 36.0, "made": 0.85},
    "qwen_standin": {"psnr": 28.0, "changed": 22.0, "unchanged": 35.0, "made": 0.85},
}
#: And with a second image: PSNR of every kind of edit, share of the taken things that are right.
TWO_REFERENCES_BAR = {"psnr": 25.0, "made": 0.7}
RECORDED_STEPS = 4
#: PSNR in dB, least and most of four categories, that influence is ahead of a rule with in Table 3.
PAPER_LEADS = {
    "attention only": (0.16, 0.61),
    "feature similarity": (6.7, 12.38),
    "random, redrawn at anchors": None,
}
#: Stand-ins whose weights also serve a pipeline for several references, and that model's name.
SEVERAL = {"qwen_standin": "qwen_plus_standin"}


def _by_category(rows: Sequence[Mapping], column: str) -> dict[str, float | None]:
    """Mean of a column per category, over the rows that have it."""
    means: dict[str, float | None] = {}
    for category in CATEGORIES:
        values = [r[column] for r in rows if r["category"] == category and r[column] is not None]
        means[category] = fmean(values) if values else None
    return means


def _local_edits_of(data: MiniEdit) -> Callable[[int, Image.Image], bool | None]:
    """Whether an image is the edit that was asked for, of the samples that are local edits."""

    def made(index: int, image: Image.Image) -> bool | None:
        sample = data[index]
        local = sample.category == "local_edit"
        return check_edit(data.split, index, sample.size, image).made if local else None

    return made


def _share_made(rows: Sequence[Mapping]) -> float | None:
    """Share of the checked samples whose edit was made as asked for; None if none was checked."""
    verdicts = [row["made"] for row in rows if row.get("made") is not None]
    return fmean(verdicts) if verdicts else None


def quality(rows: Sequence[Mapping]) -> dict:
    """Mean PSNR to the true edit per category and per task, with that of the copied reference.

    And the share of local edits that were made as asked for, by the check of `data.edit_check`.
    """
    columns = [c for c in rows[0] if "psnr" in c]
    tasks: dict[str, dict[str, float | None]] = {}
    for category in CATEGORIES:
        for task in dict.fromkeys(r["task"] for r in rows if r["category"] == category):
            chosen = [r for r in rows if r["category"] == category and r["task"] == task]
            tasks[f"{category}/{task}"] = {
                c: fmean([r[c] for r in chosen if r[c] is not None] or [float("nan")])
                for c in ("psnr", "copy_psnr", "psnr_changed")
            }
            tasks[f"{category}/{task}"]["made"] = _share_made(chosen)
    return {
        "samples": len(rows),
        "made": _share_made(rows),
        "by_category": {c: _by_category(rows, c) for c in columns},
        "by_task": tasks,
    }


def pruned_rows(
    editor: Editor,
    samples: Sequence[EditSample],
    front_layers: int,
    methods: Mapping[str, tuple[str, Mapping]],
    path: Path | None = None,
) -> dict[str, list[dict]]:
    """Per label and sample: category, PSNR in dB to the full output, mean keep ratio.

    Args:
        methods: label -> name and parameters of a method.
        path: a file that keeps the finished samples, so that a killed run goes on there.
    """

    def row_of(seed: int, sample: EditSample) -> dict[str, dict]:
        full = np.asarray(editor.edit(sample, seed))
        row = {}
        for label, (name, options) in methods.items():
            method = make_method(name, front_layers=front_layers, **options)
            with method(editor.pipe, seed=seed):
                image = np.asarray(editor.edit(sample, seed))
            pruned = [r.keep_ratio for r in method.trace if r.kept is not None]
            row[label] = {
                "category": sample.category,
                "psnr": psnr(image, full),
                "keep_ratio": fmean(pruned or [1.0]),
            }
        return row

    rows = collect(samples, row_of, f"pruning {editor.name}", path)
    return {label: [row[label] for row in rows] for label in methods}


def pruning(
    editor: Editor, samples: Sequence[EditSample], front_layers: int, path: Path | None = None
) -> dict:
    """Keep ratio at each tau and PSNR to the full output at half of the tokens, per category.

    Differences at half are to the first of `HALF`; `path` as of `pruned_rows`.
    """
    taus = {f"tau={tau}": ("topi", {"tau": tau}) for tau in TAUS}
    rows = pruned_rows(editor, samples, front_layers, taus | HALF, path)
    influence = np.array([r["psnr"] for r in rows[next(iter(HALF))]])

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
        "tau": {label: summary(label) for label in taus},
        "half": {label: summary(label) for label in HALF},
    }


def two_references(editor: Editor, count: int, kept: Path | None = None) -> dict:
    """PSNR to the true edit of edits that need a second image, and with another's in its place.

    What the second image is worth inside the changed region is the difference of the two.

    Args:
        editor: of a pipeline for several references.
        count: held-out samples of `MiniEditPlus`.
        kept: a folder for the finished samples, as of `measure`.
    """
    names = [
        (task, edit.__name__)
        for turn in zip(*EDITS.values(), strict=True)
        for task, edit in zip(EDITS, turn, strict=True)
    ]  # as the split cycles
    size = editor.config.height
    samples = list(MiniEditPlus("evaluation", size, count))

    def made(index: int, image: Image.Image) -> bool | None:
        takes_a_thing = samples[index].task == "visual_reference"
        return check_taken("evaluation", index, size, image).made if takes_a_thing else None

    rows = held_out_rows(editor, samples, made=made, path=_within(kept, "two_references"))
    others = samples[len(names) :] + samples[: len(names)]  # of the same kind of edit
    swapped = held_out_rows(
        editor,
        [
            replace(sample, references=(sample.references[0], other.references[1]))
            for sample, other in zip(samples, others, strict=True)
        ],
        path=_within(kept, "another_second_image"),
    )
    by_task = {}
    for start, (task, edit) in enumerate(names):
        chosen, misled = rows[start :: len(names)], swapped[start :: len(names)]
        by_task[f"{task}/{edit}"] = {
            column: fmean(row[column] for row in chosen)
            for column in ("psnr", "copy_psnr", "psnr_changed", "copy_psnr_changed")
        }
        by_task[f"{task}/{edit}"] |= {
            "psnr_changed_other": fmean(row["psnr_changed"] for row in misled),
            "made": _share_made(chosen),
        }
    return {
        "model": editor.name,
        "samples": len(rows),
        "by_task": by_task,
        "made": _share_made(rows),
    }


def other_shapes(editor: Editor, count: int, path: Path | None = None) -> dict:
    """PSNR to the true edit where images are not square, or references of another size.

    Args:
        count: held-out samples over the shapes of `MiniEdit(size="mixed")`.
        path: as of `held_out_rows`.
    """
    data = MiniEdit("evaluation", "mixed", count)
    rows = held_out_rows(editor, data, made=_local_edits_of(data), path=path)
    shapes = {}
    for start, shape in enumerate(data.shapes[:count]):
        chosen = rows[start :: len(data.shapes)]
        shapes[shape_label(*shape)] = _by_category(chosen, "psnr") | {
            "all": fmean(row["psnr"] for row in chosen),
            "copy": fmean(row["copy_psnr"] for row in chosen),
            "made": _share_made(chosen),
        }
    return {"samples": len(rows), "by_shape": shapes}


def bars(card: Mapping) -> list[dict[str, object]]:
    """What the model had to reach and what it did: name, unit, bar, measured.

    Empty for a model without a bar; without what was not measured.
    """
    if card["model"] not in BARS:
        return []
    bar, quality = BARS[card["model"]], card["quality"]
    of = quality["by_category"]
    found = [(f"{name}", "dB", bar["psnr"], of["psnr"][name]) for name in CATEGORIES]
    for region in ("changed", "unchanged"):
        measured = of[f"psnr_{region}"]["local_edit"]
        found.append((f"local_edit, {region} pixels", "dB", bar[region], measured))
    found.append(("local_edit, made as asked for", "%", bar["made"], quality["made"]))
    if two := card.get("two_references"):
        aim = TWO_REFERENCES_BAR
        for kind, row in two["by_task"].items():
            found.append((f"two references, {kind}", "dB", aim["psnr"], row["psnr"]))
        found.append(("two references, right thing", "%", aim["made"], two["made"]))
    return [
        {"name": name, "unit": unit, "bar": aim * scale, "measured": measured * scale}
        for name, unit, aim, measured in found
        if measured is not None
        for scale in [100 if unit == "%" else 1]
    ]


def beside_the_paper(card: Mapping) -> list[dict[str, str]]:
    """What the paper says of FLUX.1-Kontext and Qwen-Image-Edit, and what this model shows.

    Each has `what`, `here`, `paper` and `alike`: yes, no, not told apart, or empty where the paper
    says nothing.
    """
    told, half = card["calibration"], card["pruning"]["half"]
    by_layer, by_step, chosen = told["by_layer"], np.array(told["by_step"]), [*told["layers"]]
    ratio = fmean(by_layer[k] for k in chosen) / np.median(np.delete(by_layer, chosen))
    highest = [np.argsort(each)[-len(chosen) :] for each in told["by_category"].values()]
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
            "of these layers, so many or more are the highest of each category",
            f"{shared} of {len(chosen)}",
            "the same for every task (3.2)",
            _yes(shared >= CONSISTENT * len(chosen)),
        ),
        (
            "bootstrap subsets of the samples that choose the same set",
            f"{told['stability']['same_set']:.0%} of {told['stability']['subsets']}",
            "not told",
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
        apart = _yes(lead > 0) if abs(lead) > 2 * error else "not told apart"
        says = f"{paper[0]:+.1f} to {paper[1]:+.1f} dB (Table 3)" if paper else "not compared"
        what = f"half of the tokens: influence ahead of {rival}"
        rows.append((what, f"{lead:+.1f} ± {error:.1f} dB", says, apart if paper else ""))
    return [dict(zip(("what", "here", "paper", "alike"), row, strict=True)) for row in rows]


def _yes(alike: bool) -> str:
    return "yes" if alike else "no"


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
    editor: Editor,
    calibration: Calibration,
    held_out: int = 256,
    samples: int = 32,
    kept: Path | None = None,
) -> dict:
    """All measured parts of the card; leaves the calibrated layers registered.

    Args:
        held_out: samples for the PSNR to the true edit.
        samples: for pruning.
        kept: a folder for the finished samples, so that a killed run goes on there.
    """
    size = editor.config.height
    editor.transformer.register_to_config(representative_layers=list(calibration.layers))
    evaluation = MiniEdit("evaluation", size)
    made = _local_edits_of(evaluation)
    path = _within(kept, "quality")
    rows = held_out_rows(editor, _take(evaluation, held_out), made=made, path=path)
    return {
        "model": editor.name,
        "transformer": type(editor.transformer).__name__,
        "pipeline": type(editor.pipe).__name__,
        "shown": shown(rows),
        "weights": editor.fingerprint(),
        "parameters": sum(p.numel() for p in editor.transformer.parameters()),
        "steps": editor.steps,
        "size": size,
        "true_cfg": editor.config.true_cfg,
        "quality": quality(rows),
        "other_shapes": other_shapes(editor, max(held_out // 4, 1), _within(kept, "other_shapes")),
        "calibration": attention(calibration),
        "pruning": pruning(
            editor,
            list(_take(evaluation, samples)),
            editor.config.front_layers,
            _within(kept, "pruning"),
        ),
    }


def _within(kept: Path | None, name: str) -> Path | None:
    return None if kept is None else kept / f"{name}.rows.jsonl"


def _take(data: MiniEdit, count: int):
    return (data[i] for i in range(min(count, len(data))))


def shown(rows: Sequence[Mapping]) -> dict[str, list[int]]:
    """category -> indices of its best, typical and worst edits: two of each, by gain over copying.

    Gain is PSNR minus that of the untouched reference; typical is around the median.
    """
    chosen: dict[str, list[int]] = {}
    for category in CATEGORIES:
        inside = [k for k, row in enumerate(rows) if row["category"] == category]
        inside.sort(key=lambda k: rows[k]["copy_psnr"] - rows[k]["psnr"])
        middle = len(inside) // 2
        chosen[category] = inside[:2] + inside[max(middle - 1, 0) : middle + 1] + inside[-2:]
    return chosen


def picture_grid(editor: Editor, chosen: Mapping[str, Sequence[int]]) -> Image.Image:
    """Reference, edit and true edit of the samples of `shown`, one category per row."""
    evaluation = MiniEdit("evaluation", editor.config.height)
    return _grid(
        [
            [(s.copy, editor.edit(s), s.target) for s in (evaluation[k] for k in indices)]
            for indices in chosen.values()
        ]
    )


def recorded_edits(editor: Editor) -> Image.Image:
    """Four held-out edits by a few steps, side by side: to see whether a machine repeats them.

    Of every category one, or of every kind of edit with two references.
    """
    data = MiniEditPlus if editor.config.kind == "qwen_edit_plus" else MiniEdit
    quick = Editor(replace(editor.config, steps=RECORDED_STEPS), editor.pipe, editor.fingerprint())
    edits = [quick.edit(sample) for sample in data("evaluation", editor.config.height, 4)]
    return Image.fromarray(np.concatenate([np.asarray(edit.convert("RGB")) for edit in edits], 1))


def recording(name: str, folder: Path) -> Path:
    """Where the edits of `recorded_edits` lie beside the weights."""
    return folder / f"recorded_{name}.png"


def two_reference_grid(editor: Editor, rows: int = 4) -> Image.Image:
    """First and second reference, edit and true edit: a column of each kind of edit."""
    kinds = sum(map(len, EDITS.values()))
    samples = list(MiniEditPlus("evaluation", editor.config.height, rows * kinds))
    shown = [(*s.references, editor.edit(s), s.target) for s in samples]
    return _grid([shown[k : k + kinds] for k in range(0, len(shown), kinds)])


def _grid(rows: Sequence[Sequence[Sequence[Image.Image]]]) -> Image.Image:
    """Pictures of one size: rows of groups, with white between the groups."""
    lines = []
    for groups in rows:
        cells = []
        for images in groups:
            cells += [np.asarray(image.convert("RGB")) for image in images]
            cells.append(np.full((cells[0].shape[0], 8, 3), 255, np.uint8))
        lines += [np.concatenate(cells, 1), np.full((8, sum(c.shape[1] for c in cells), 3), 255)]
    return Image.fromarray(np.concatenate(lines).astype(np.uint8))


def render(card: Mapping, recipe: Mapping, curves: bool = False, remarks: str = "") -> str:
    """The card as Markdown, from `measure` and the recipe of the training run.

    Args:
        curves: show the learning curves that lie beside it.
        remarks: what somebody saw who looked at the pictures.
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
    """The card as Markdown, from what lies beside the weights.

    These are card.json, the recipe of the training run, and `remarks.md`, written by hand, if there
    are such.
    """
    card, recipe = (json.loads((folder / f"{n}.json").read_text()) for n in ("card", "recipe"))
    remarks = folder / "remarks.md"
    seen = remarks.read_text() if remarks.exists() else ""
    return render(card, recipe, (folder / "curves.png").exists(), seen)


def calibrated(editor: Editor, data: MiniEdit) -> Calibration:
    """The shipped calibration if it is of these weights and as many samples, else a new one.

    `topi calibrate --ship` writes it too, and can be resumed.
    """
    file = editor.calibration_file
    try:
        found = read_calibration(file)
        if found.overall.samples >= len(data) and found.layers_for(editor.fingerprint()):
            return found
    except ToPiError:
        pass  # there is none, or it is of other weights
    found = calibrate(editor, data, more={"data": data.fingerprint()})
    ship(found, file)
    return found


def settings_key(
    editors: Sequence[Editor], calibration: Calibration, held_out: int, samples: int
) -> str:
    """Names what the rows that `measure` keeps depend on: weights, settings, layers, counts."""
    measured = [(editor.fingerprint(), asdict(editor.config)) for editor in editors]
    return f"{editors[0].name}-{digest([measured, calibration.layers, held_out, samples])}"


def _editor(model: str) -> Editor:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        settings = compose("config", [f"model={model}"]).model
    return load_editor(OmegaConf.to_container(settings))


def main(argv: list[str] | None = None) -> None:
    """Measure a shipped stand-in and write its card."""
    parser = argparse.ArgumentParser(prog="python -m topi.bench.standins.model_card")
    parser.add_argument("model", nargs="?", default="kontext_standin")
    parser.add_argument("--held-out", type=int, default=512, help="samples for the true edits")
    parser.add_argument("--calibration", type=int, default=48, help="samples for the layers")
    parser.add_argument("--samples", type=int, default=32, help="samples for pruning")
    parser.add_argument(
        "--store", type=Path, default=Path("results"), help="keeps what a killed run has measured"
    )
    args = parser.parse_args(argv)
    if args.held_out < 16 or min(args.calibration, args.samples) < len(CATEGORIES):
        parser.error("too few samples for one of every category: 16, 4 and 4 are the least")
    editor, *several = map(_editor, filter(None, (args.model, SEVERAL.get(args.model))))
    data = MiniEdit("calibration", editor.config.height, args.calibration)
    calibration = calibrated(editor, data)
    key = settings_key([editor, *several], calibration, args.held_out, args.samples)
    kept = args.store / "model_card" / key
    with files.lock(kept / ".lock") as ours:
        if not ours:
            raise ToPiError(f"Another process is measuring {key}; leave it to that.")
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
