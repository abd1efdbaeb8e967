"""`python -m topi.bench.data.freeze` writes MiniEdit's manifest, card and picture.

Only for a new version: results on the old samples do not mix with results on the new ones.
"""

import json
from collections import Counter
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from topi.bench.data import mini_edit, mini_edit_plus
from topi.bench.data.anyedit_types import CATEGORY
from topi.bench.data.manifest import FILE, VERSION, manifest
from topi.bench.data.mini_edit import COUNTS, MiniEdit
from topi.bench.data.mini_edit_plus import MiniEditPlus
from topi.bench.data.sample import CATEGORIES, VISUAL, EditSample
from topi.bench.data.tasks import EDIT_TYPES, TASKS

CARD = FILE.with_name("README.md")
PICTURE = FILE.with_name("mini_edit.jpg")
#: (dataset, split, size, samples) whose hashes are kept: what is held out, and a taste of training.
FROZEN = [
    (cls, split, size, 20 if split == "train" else COUNTS[split])
    for cls in (MiniEdit, MiniEditPlus)
    for split, size in (
        ("train", 128),
        ("calibration", 128),
        ("calibration", "mixed"),
        ("evaluation", 128),
        ("evaluation", "mixed"),
    )
]


def content(samples: int | None = None) -> dict:
    """The manifest of what the generator draws now; of the first `samples` per split, if given."""
    hashes = {}
    for cls, split, size, count in FROZEN:
        count = min(count, samples or count)
        data = cls(split, size, count)
        hashes[data.key] = " ".join(data.draw(index).digest() for index in range(count))
    return {
        "name": "MiniEdit",
        "version": VERSION,
        "seeds": {"mini_edit": mini_edit.SPLITS, "mini_edit_plus": mini_edit_plus.SPLITS},
        "samples": COUNTS,
        "tasks": {
            **{
                task: {"edit_type": EDIT_TYPES[task], "category": category}
                for category in CATEGORIES
                for task in TASKS[category]
            },
            **{task: {"edit_type": task, "category": VISUAL} for task in mini_edit_plus.TASKS},
        },
        "train_shares": mini_edit.TRAIN_SHARES,
        "mixed_shapes": [{"target": t, "reference": r} for t, r in mini_edit.SHAPES],
        "hashes": hashes,
    }


def card(frozen: dict) -> str:
    """The dataset card as Markdown."""
    samples = [MiniEdit("evaluation").draw(i) for i in range(COUNTS["evaluation"])]
    scenes = [mini_edit.draw_edit("evaluation", i, 128)[0].scene for i in range(len(samples))]
    covered = set(EDIT_TYPES.values()) | set(mini_edit_plus.TASKS)
    environment = Environment(
        loader=PackageLoader("topi.bench.data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("dataset_card.md.j2").render(
        frozen=frozen,
        picture=PICTURE.name,
        categories=CATEGORIES,
        counts=Counter(s.task for s in samples),
        changed={
            task: sum(s.changed.mean() for s in samples if s.task == task)
            / sum(s.task == task for s in samples)
            for task in EDIT_TYPES
        },
        objects=Counter((s.category, s.objects) for s in samples),
        backgrounds=Counter(
            "landscape" if kind == "landscape" else "wall" if kind == "wall" else "texture"
            for kind in (scene.background["kind"] for scene in scenes)
        ),
        simplest=sum(s.background["kind"] == "wall" and len(s.things) == 1 for s in scenes),
        densest=sum(s.background["kind"] != "wall" and len(s.things) == 4 for s in scenes),
        missing=[t for t in CATEGORY if t not in covered],
    )


def picture(columns: int = 3, side: int = 96, text: int = 26) -> Image.Image:
    """One sample of every task: its references, the true edit, and the instruction above."""
    data, plus = MiniEdit("evaluation"), MiniEditPlus("evaluation")
    wanted = [task for category in CATEGORIES for task in TASKS[category]]
    samples: list[EditSample] = [
        next(s for s in map(data.draw, range(len(data))) if s.task == task) for task in wanted
    ]
    samples += [plus.draw(i) for i in range(4)]
    pad, font = 8, ImageFont.load_default(9)
    cell = 3 * side + pad
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * cell + pad, rows * (side + text)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, sample in enumerate(samples):
        x, y = pad + k % columns * cell, k // columns * (side + text)
        draw.text((x, y + 2), f"{sample.task}\n{sample.instruction}", "black", font, spacing=1)
        for image in (*sample.references, sample.target):
            sheet.paste(image.resize((side, side), Image.LANCZOS), (x, y + text))
            x += side + 1
    return sheet


def main() -> None:
    """Write the three files."""
    frozen = content()
    FILE.write_text(json.dumps(frozen, indent=1) + "\n")
    manifest.cache_clear()
    CARD.write_text(card(json.loads(FILE.read_text())))
    picture().save(PICTURE, quality=88)
    for file in (FILE, CARD, PICTURE):
        print(f"wrote {Path(file).name}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
