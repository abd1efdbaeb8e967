"""The leaderboard, and its advice on which method to use: a pure function of a store.

Settings are ranked by PSNR to full context among those that reach a FLOP-ideal speed-up. Two
settings are compared by the paired difference over the samples that both have (95 % bootstrap, not
corrected for the number of comparisons). A paired interval is narrower than those of the two means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf

import pandas as pd

from topi.bench.io.escape import code
from topi.bench.report.paper.build import suites_of
from topi.bench.report.paper.suite import Suite, suites
from topi.bench.report.pareto import KNOBS, NAMED, pareto_points
from topi.bench.report.tables.columns import FEW, measured_text
from topi.bench.report.tables.text_table import markdown_lines
from topi.bench.results.store import Store
from topi.errors import ToPiError

LEVELS = (1.1, 1.3, 1.8, 2.5)
"""FLOP-ideal speed-ups that the columns ask for; the advice asks for all but the first."""
UNSCORED = frozenset(
    {"full", "random", "checker", "ref_kv", "ref_kv_causal", "fewer_steps", "downscaled_ref"}
)
"""Methods that look at no token to decide on it, alone or with a cache."""
STAND_IN = "These are numbers of stand-ins, not of FLUX or Qwen. "
NOTE = (
    "PSNR to full context in dB with its 95 % interval, for the best setting of each method among "
    "those whose FLOP-ideal speed-up reaches that of the column; –: no setting reaches it. Bold: "
    "the best of the column, and all that are not significantly different from it (paired "
    "difference over the same samples, 95 %, not corrected for the number of comparisons)."
)
MANY = 4  # values of a list, above which a label shows how many there are


def settings(suite: Suite) -> pd.DataFrame:
    """Its complete cells, as `pareto_points` has them over all categories; best PSNR first."""
    points = pareto_points(suite)
    pooled = points[(points["category"] == "all") & points["psnr"].notna()]
    return pooled.sort_values(["psnr", "flop_speedup"], ascending=False, kind="stable")


def ranked(found: pd.DataFrame, level: float) -> pd.DataFrame:
    """The best setting of every method that reaches a FLOP-ideal speed-up, best PSNR first."""
    return found[found["flop_speedup"] >= level].drop_duplicates("method")


def clearly_better(suite: Suite, first: str, other: str) -> bool:
    """True if the PSNR of one label is significantly above that of another, paired by sample.

    False on fewer than `FEW` samples. An output equal to the full one has an infinite PSNR: where
    that leaves no pair to compare, it is better than any that is not.
    """
    gap = suite.run(first).minus(suite.run(other), "psnr")
    if gap.n:
        return gap.n >= FEW and gap.low > 0
    return isinf(suite.run(first).mean("psnr").value) > isinf(suite.run(other).mean("psnr").value)


def tied(suite: Suite, places: pd.DataFrame) -> list[str]:
    """The labels that the first of `ranked` is not clearly better than, in order."""
    first, *others = places["label"]
    return [label for label in others if not clearly_better(suite, first, label)]


def board(suite: Suite, known: Sequence[str] = ()) -> str:
    """The table of one model as Markdown: a line per method, a column per speed.

    Methods that are neither bold in a column nor in `NAMED` follow in a folded table.

    Args:
        known: methods that must have a line, whether this model has a cell of them or not.
    """
    found = settings(suite)
    columns = {level: ranked(found, level) for level in LEVELS}
    bold = {
        level: {places["label"].iloc[0], *tied(suite, places)}
        for level, places in columns.items()
        if len(places)
    }
    order = list(dict.fromkeys(m for places in columns.values() for m in places["method"]))
    order += [m for m in dict.fromkeys([*found["method"], *known]) if m not in order]
    first = set(found.loc[found["label"].isin(set().union(*bold.values())), "method"])
    shown: list[list[str]] = []
    folded: list[list[str]] = []
    for method in order:
        own = found[found["method"] == method]
        fields = []
        for level, places in columns.items():
            best = places[places["method"] == method]
            fields.append(_field(best.iloc[0], bold[level]) if len(best) else "–")
        fastest = f"{own['flop_speedup'].max():.2f}×" if len(own) else "not run"
        lines = shown if method in first | NAMED else folded
        lines.append([code(method), *fields, fastest])
    parts = [_table(shown)]
    if folded:
        parts += [f"<details><summary>The other {len(folded)} methods</summary>", _table(folded)]
        parts += ["</details>"]
    return "\n\n".join(parts)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head = [["Method", *(f"≥ {level:g}×" for level in LEVELS), "Fastest"]]
    head.append(["---", *["---:"] * (len(LEVELS) + 1)])
    return markdown_lines([*head, *lines])


def _field(line: pd.Series, bold: set[str]) -> str:
    words = [short(word) for word in line["label"].split() if word.partition("=")[0] in KNOBS]
    psnr = quality(line)
    score = f"**{psnr}**" if line["label"] in bold else psnr
    return " ".join([score, *map(code, words), f"{line['flop_speedup']:.2f}×"])


def quality(line: pd.Series) -> str:
    """`33.1 [30.9, 35.2]` in dB; `∞` if all outputs equal the full one, a star if some do."""
    if isinf(line["psnr"]):
        return "∞"
    star = r"\*" if line["identical"] else ""
    return f"{line['psnr']:.1f}{star} [{line['psnr_low']:.1f}, {line['psnr_high']:.1f}]"


def speed(line: pd.Series) -> str:
    """`2.11×`, and what was measured: `(measured 1.95× [1.9, 2.0])`."""
    ideal = f"{line['flop_speedup']:.2f}×"
    if not line["timed"]:
        return ideal
    names = ("speedup", "speedup_low", "speedup_high", "timed")
    return f"{ideal} (measured {measured_text(*line[list(names)])})"


def short(label: str) -> str:
    """A label or a word of one, with `(28 values)` for a long list, such as a searched schedule."""
    return " ".join(map(_short, label.split()))


def _short(word: str) -> str:
    name, _, value = word.partition("=")
    values = value.count("-") + 1
    return f"{name}=({values} values)" if values > MANY else word


Rule = tuple[str, float | None, Callable[[str], bool]]
"""What is asked for, the speed-up to reach (None: the highest level that any does), of which."""


def is_unscored(label: str) -> bool:
    """True if the method decides without looking at the tokens."""
    return label.split()[0] in UNSCORED


def is_stack(label: str) -> bool:
    """True for a method that drops or stores tokens, within the steps that a cache computes."""
    return not label.startswith("full ") and " cache=" in label


RULES: tuple[Rule, ...] = (
    *((f"The closest to full context at {level:g}× or more", level, bool) for level in LEVELS[1:]),
    ("The closest without scoring tokens, at 1.3× or more", LEVELS[1], is_unscored),
    (
        "The closest stack of a method and a cache, at the highest level that one reaches",
        None,
        is_stack,
    ),
)


def advice(shown: Sequence[Suite]) -> list[str]:
    """A line per rule, with what it finds for each model."""
    tables = {suite.model: settings(suite) for suite in shown}
    return [
        f"- {what}: "
        + "; ".join(_advice(suite, tables[suite.model], level, able) for suite in shown)
        + "."
        for what, level, able in RULES
    ]


def _advice(
    suite: Suite, found: pd.DataFrame, level: float | None, able: Callable[[str], bool]
) -> str:
    found = found[found["label"].map(able).astype(bool)]
    reached = [each for each in LEVELS if (found["flop_speedup"] >= each).any()]
    if level is None and reached:
        level = reached[-1]
    places = ranked(found, level) if level in reached else found[:0]
    if places.empty:
        return f"{code(suite.model)}: none in the store"
    best = places.iloc[0]
    text = f"{code(suite.model)}: **{code(short(best['label']))}**, "
    text += f"{quality(best)} dB at {speed(best)}"
    if equal := tied(suite, places):
        return (
            text
            + ", not significantly different from "
            + ", ".join(code(short(label)) for label in equal)
        )
    if len(places) == 1:
        return text + ", the only one that reaches it"
    second = code(short(places["label"].iloc[1]))
    return f"{text}, significantly better than {second} and all others"


def block(store: Store) -> str:
    """Tables and advice as Markdown.

    Raises:
        ToPiError: the store has no complete cell of a method.
    """
    shown = [suite for suite in suites_of("leaderboard", suites(store)) if len(settings(suite))]
    if not shown:
        raise ToPiError(
            f"{store.root} has no complete cell to rank: run `python run.py -m experiment=pareto` "
            "first, or name another store with --store."
        )
    known = sorted({method for suite in shown for method in settings(suite)["method"]})
    parts = [
        "**Which method should I use?** Computed from the tables below:",
        "\n".join(advice(shown)),
    ]
    for suite in shown:
        left_out = len(suite.cells) - len(suite.complete)
        about = f"{code(suite.model)}, {suite.count} samples, {suite.steps} steps"
        about += f"; {left_out} incomplete cells are left out" if left_out else ""
        parts += [f"{about}:", board(suite, known)]
    return "\n\n".join([*parts, STAND_IN + NOTE if any(s.stand_in for s in shown) else NOTE])
