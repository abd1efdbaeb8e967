"""A sheet of pictures laid out by hand, so that nothing overlaps: Figures 5, 6, 7, 9 and 10."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from topi.bench.report.drawing.plots import STYLE

PAGE = 6.75  # inches, the width of a page of two columns
GAP, BETWEEN, TITLE, CAPTION, LINE = 0.05, 0.2, 0.26, 0.09, 0.12  # inches
NOTE = 0.12  # inches, a line below the pictures of a row
CHARACTERS = 17.5  # of a caption, per inch


@dataclass(frozen=True)
class Tile:
    """A picture and a short note that is written below it, as it would cover much; None: empty."""

    image: Image.Image | None
    note: str = ""

    @property
    def shape(self) -> float:
        """Width over height."""
        return self.image.width / self.image.height if self.image else 1.0


@dataclass(frozen=True)
class Block:
    """Rows of pictures under common headings.

    Args:
        title: above the block.
        headings: of the columns.
        rows: of each the caption below it and its tiles, one per heading.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tile]]]

    @property
    def head(self) -> float:
        """Height of the headings, inches."""
        return 0.05 + LINE * max(heading.count("\n") + 1 for heading in self.headings)

    def plan(self, width: float) -> list[tuple[float, float, str]]:
        """Of each row: height of its pictures, all alike, and of its notes; its caption."""
        plan = []
        for caption, tiles in self.rows:
            free = width - (len(tiles) - 1) * GAP
            lines = textwrap.wrap(caption, int(width * CHARACTERS))
            notes = NOTE * any(tile.note for tile in tiles)
            plan.append((free / sum(tile.shape for tile in tiles), notes, "\n".join(lines)))
        return plan

    def height(self, width: float) -> float:
        """Of the whole block, inches."""
        rows = (tall + notes + _caption(caption) for tall, notes, caption in self.plan(width))
        return TITLE + self.head + sum(rows)


@plt.style.context(STYLE)
def draw(blocks: Sequence[Block], abreast: bool = False, width: float = PAGE) -> Figure:
    """The sheet; blocks stand below each other, or `abreast`."""
    n = len(blocks) if abreast else 1
    own = (width - (n - 1) * BETWEEN) / n
    heights = [block.height(own) for block in blocks]
    height = max(heights) if abreast else sum(heights)
    figure = plt.figure(figsize=(width, height), layout="none")
    left, top = 0.0, height
    for block, tall in zip(blocks, heights, strict=True):
        _draw(figure, block, left, top, own)
        if abreast:
            left += own + BETWEEN
        else:
            top -= tall
    return figure


def _draw(figure: Figure, block: Block, left: float, top: float, width: float) -> None:
    """Draw a block whose upper left corner is at (left, top), in inches from the lower left."""
    wide, high = figure.get_size_inches()

    def text(x: float, y: float, words: str, **style: object) -> None:
        figure.text(x / wide, y / high, words, **style)

    text(left, top - 0.05, block.title, va="top", fontweight="bold", fontsize=9)
    top -= TITLE + block.head
    small = width / len(block.headings) < 0.85
    for number, ((_, tiles), (tall, notes, caption)) in enumerate(
        zip(block.rows, block.plan(width), strict=True)
    ):
        x = left
        for heading, tile in zip(block.headings, tiles, strict=True):
            side = tall * tile.shape
            if number == 0:
                at = {"ha": "center", "va": "bottom", "fontsize": 6.2 if small else 7.5}
                text(x + side / 2, top + 0.04, heading, **at)
            if tile.image is not None:
                _picture(figure, (x / wide, (top - tall) / high, side / wide, tall / high), tile)
                at = {"ha": "center", "va": "top", "fontsize": 6.5 if small else 7}
                text(x + side / 2, top - tall - 0.02, tile.note, **at)
            x += side + GAP
        top -= tall + notes
        text(left, top - 0.02, caption, va="top", fontsize=6.5 if small else 7)
        top -= _caption(caption)


def _caption(caption: str) -> float:
    return CAPTION + LINE * (caption.count("\n") + 1)


def _picture(figure: Figure, box: tuple[float, ...], tile: Tile) -> None:
    ax = figure.add_axes(box)
    ax.imshow(tile.image, interpolation="none", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.set_axis_off()
