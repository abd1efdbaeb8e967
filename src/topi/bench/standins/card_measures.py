"""Measurements of the model card of a stand-in: quality, attention, pruning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from topi.bench.data import CATEGORIES, EditSample, MiniEdit
from topi.bench.data.edit_check import check_edit, check_taken
from topi.bench.data.mini_edit import COUNTS
from topi.bench.data.mini_edit import label as shape_label
from topi.bench.data.mini_edit_plus import EDITS, MiniEditPlus
from topi.bench.editors.editor import Editor
from topi.bench.results.calibration_file import Calibration
from topi.bench.runs.resume import Row, collect
from topi.bench.studies.held_out import held_out_rows, psnr
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


def _by_category(rows: Sequence[Mapping], column: str) -> dict[str, float | None]:
    """Mean of a column per category, over the rows that have it."""
    means: dict[str, float | None] = {}
    for category in CATEGORIES:
        values = [r[column] for r in rows if r["category"] == category and r[column] is not None]
        means[category] = fmean(values) if values else None
    return means


def _local_edits_of(data: MiniEdit) -> Callable[[int, Image.Image], bool | None]:
    """A check of (index, image): True if the image is the local edit that was asked for."""

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
    """Mean PSNR to the true edit per category and per task, beside that of the copied reference.

    `made` is the share of local edits that `data.edit_check` finds made as asked.
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
        path: a file that keeps the finished samples, so that a killed run continues there.
    """

    def row_of(seed: int, sample: EditSample) -> Row:
        full = np.asarray(editor.edit(sample, seed))
        row = {}
        for label, (name, options) in methods.items():
            method = make_method(name, front_layers=front_layers, **options)
            with method(editor.pipe, seed=seed):
                image = np.asarray(editor.edit(sample, seed))
            pruned = [call.keep_ratio for call in method.trace if call.kept is not None]
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
    """PSNR to the true edit of edits that need a second image, and with a wrong second image.

    The difference of the two inside the changed region is the worth of the second image.

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


def attention(calibration: Calibration) -> dict:
    """The part of a calibration that the card shows; calibration.json has all of it."""
    overall, categories = calibration.overall, calibration.by_category
    return {
        "samples": overall.samples,
        "layers": list(overall.layers),
        "by_layer": list(overall.by_layer),
        "by_step": list(overall.by_step),
        "by_category": {name: list(curves.by_layer) for name, curves in categories.items()},
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
        kept: a folder for the finished samples, so that a killed run continues there.
    """
    size = editor.config.height
    editor.transformer.register_to_config(representative_layers=list(calibration.layers))
    evaluation = MiniEdit("evaluation", size, min(held_out, COUNTS["evaluation"]))
    made = _local_edits_of(evaluation)
    rows = held_out_rows(editor, evaluation, made=made, path=_within(kept, "quality"))
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
            MiniEdit("evaluation", size, min(samples, COUNTS["evaluation"])),
            editor.config.front_layers,
            _within(kept, "pruning"),
        ),
    }


def _within(kept: Path | None, name: str) -> Path | None:
    return None if kept is None else kept / f"{name}.jsonl"


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
