"""Which cells stand in which line of the paper's tables and figures."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = range(5)
"""Of the layers that Tables 2 and 5 draw at random."""
TAUS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
OURS = "topi tau=0.85"
HALF = "topi ratio=0.5"
"""ToPi as in section 5.1, and as in the ablations of section 5.4."""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Args:
        title: what the line is called.
        labels: of its cells; several are averaged.
        paper: the paper's name of the line; None if the paper has none.
    """

    title: str
    labels: tuple[str, ...]
    paper: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of quality, and of speed if the paper has that: Tables 1 to 5.

    Args:
        ours: the title of the line that the others are compared with.
        speed: whether it has columns of speed.
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    ours: str
    speed: bool = False

    @property
    def labels(self) -> list[str]:
        """The labels of all its cells."""
        return [label for line in self.lines for label in line.labels]


_OURS = Line("ToPi", (HALF,), "Ours")
_RANDOM = Line(
    "Random layers (5 draws)",
    tuple(f"{HALF} layers=random:{seed}" for seed in SEEDS),
    "Random",
)
_ALL = Line("All layers", (f"{HALF} layers=all",), "All")
_FIRST = Line("First 3 layers", (f"{HALF} layers=first",), "First")
_LAST = Line("Last 3 layers", (f"{HALF} layers=last",), "Last")

TABLE1 = Sheet(
    "table1",
    "Table 1. Every method against full context",
    (
        Line("ToMeSD", ("tomesd",), "ToMeSD"),
        Line("ToMeSD*", ("tomesd_ref",), "ToMeSD*"),
        Line("ToMA", ("toma",), "ToMA"),
        Line("ToMA*", ("toma_ref",), "ToMA*"),
        Line("Random half", ("random",)),
        Line("Checkerboard", ("checker",)),
        Line("ToPi τ=0.85", (OURS,), "Ours"),
    ),
    ours="ToPi τ=0.85",
    speed=True,
)
TABLE2 = Sheet("table2", "Table 2. Which layers score", (_RANDOM, _ALL, _OURS), "ToPi")
TABLE3 = Sheet(
    "table3",
    "Table 3. What scores",
    (
        Line("Similarity", (f"{HALF} score=similarity",), "Similarity"),
        Line("Attention only", (f"{HALF} score=attention",), "Attn-Only"),
        _OURS,
    ),
    "ToPi",
)
TABLE4 = Sheet(
    "table4",
    "Table 4. Dropped tokens pruned or merged",
    (
        Line("Merge", (f"{HALF} dropped=merge",), "Merge"),
        Line("Prune", (HALF,), "Prune"),
    ),
    "Prune",
)
TABLE5 = Sheet(
    "table5",
    "Table 5. Which layers score, with fixed choices",
    (_FIRST, _LAST, _RANDOM, _ALL, _OURS),
    "ToPi",
)
SHEETS = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5)

CURVES: dict[str, tuple[str, ...]] = {
    "ToMeSD": ("tomesd ratio=0.25", "tomesd", "tomesd ratio=0.75"),
    "ToMeSD*": ("tomesd_ref ratio=0.25", "tomesd_ref", "tomesd_ref ratio=0.75"),
    "ToMA": ("toma ratio=0.25", "toma", "toma ratio=0.75"),
    "ToMA*": ("toma_ref ratio=0.25", "toma_ref", "toma_ref ratio=0.75"),
    "ToMA, every step": (
        "toma ratio=0.25 merge_every=1",
        "toma merge_every=1",
        "toma ratio=0.75 merge_every=1",
    ),
    "ToMA*, every step": (
        "toma_ref ratio=0.25 merge_every=1",
        "toma_ref merge_every=1",
        "toma_ref ratio=0.75 merge_every=1",
    ),
    "Random": ("random ratio=0.3", "random", "random ratio=0.7"),
    "Checkerboard": ("checker",),
    "Checkerboard, flipped": ("checker flip=anchor",),
    "ToPi": tuple(f"topi tau={tau}" for tau in TAUS),
}
"""Method -> the labels along its curve of quality over speed; ToPi is the last."""

TEACACHE = {
    "ToPi": OURS,
    "TeaCache": "full cache=teacache",
    "ToPi + TeaCache": f"{OURS} cache=teacache",
}
"""Figure 6."""
FIG10 = {f"τ={tau:g}": f"topi tau={tau:g}" for tau in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1)}
FIG11 = {"Dynamic": HALF, "Static": f"{HALF} update_every=0"}
FIG5 = {"ToMeSD": "tomesd", "ToMA": "toma", "ToPi": OURS}


def all_labels() -> list[str]:
    """The labels of all cells that the paper's artefacts are made of."""
    labels = [label for sheet in SHEETS for label in sheet.labels]
    labels += [label for curve in CURVES.values() for label in curve]
    labels += [*TEACACHE.values(), *FIG10.values(), *FIG11.values()]
    return list(dict.fromkeys(labels))
