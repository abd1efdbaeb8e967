"""The files of a store, field by field, for `topi.bench.results.validation.parse`.

Fields that are not named here may be there, and are kept, after those that are named.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict

from topi.bench.results.files import checked_name
from topi.errors import ToPiError


def _number(value: float) -> float:
    if value != value:
        raise ValueError("it is not a number")
    return value


def _name(value: str) -> str:
    try:
        return checked_name(value)
    except ToPiError as error:
        raise ValueError(str(error)) from error


Count = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, AfterValidator(_name)]
Score = Annotated[float, AfterValidator(_number)]
"""A number that may be infinite."""
Seconds = Annotated[FiniteFloat, Field(gt=0)]
Settings = dict[str, Any]


class _Open(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")


class FullRun(_Open):
    """What full-context outputs depend on."""

    model: NotRequired[Settings]
    weights: NotRequired[str]


class CellConfig(_Open):
    """The configuration in a manifest; `topi.bench.config.schema` checks it when it runs again."""

    model: NotRequired[Settings]
    method: NotRequired[Settings]
    cache: NotRequired[Settings]
    layers: NotRequired[Settings]
    data: NotRequired[Settings]


class Manifest(_Open):
    """`manifest.json` of a cell."""

    key: NotRequired[str]
    created: NotRequired[str]
    model: str
    method: str
    label: str
    params: Settings
    trim_last: NotRequired[bool]
    full_key: Name
    seed: NotRequired[int]
    steps: Count
    count: Count
    weights: NotRequired[str]
    data: NotRequired[str]
    git: NotRequired[Settings | None]
    code: NotRequired[str | None]
    lock: NotRequired[str | None]
    versions: NotRequired[dict[str, str | None]]
    device: NotRequired[Settings]
    job: NotRequired[Settings]
    full: FullRun
    config: NotRequired[CellConfig]
    folder: NotRequired[str]
    experiment: NotRequired[str | None]
    labels: NotRequired[Annotated[list[str], Field(min_length=1)]]
    resumed: NotRequired[list[Settings]]


class Row(_Open):
    """A line of `rows.jsonl` of a cell: one sample."""

    sample: Name
    index: Count
    category: str
    task: str
    instruction: str
    seed: NotRequired[int]
    psnr: Score
    ssim: Score
    lpips: NotRequired[Score | None]
    keep_ratio: Score
    pruned_keep_ratio: NotRequired[Score | None]
    n_reference: NotRequired[Count]
    calls: NotRequired[Count]
    anchor_calls: NotRequired[Count]
    pruned_calls: NotRequired[Count]
    merged_calls: NotRequired[Count]
    skipped_calls: NotRequired[Count]
    scoring_seconds: NotRequired[Score]
    selection_seconds: NotRequired[Score]
    flop_speedup: Score


class Pair(_Open):
    """A line of `latency.jsonl` of a cell: one timed pair of runs."""

    sample: Name
    repeat: Count
    seconds_full: Seconds
    seconds_method: Seconds


class Completion(_Open):
    """`complete.json` of a cell: what it had when it ended.

    Args:
        pictures: whether every sample had its picture; not where none are kept, as in an export.
    """

    samples: NotRequired[Count]
    latency: NotRequired[Count]
    pictures: NotRequired[bool]


class Failure(_Open):
    """`failed.json` of a cell."""

    message: str


Side = Annotated[int, Field(ge=1, le=4096)]
"""Tokens along a side of a picture."""
Grid = Annotated[list[Side], Field(min_length=2, max_length=2)]
"""Rows and columns of a picture's tokens."""


class _Anchor(_Open):
    step: Count
    branch: str
    kept: list[Count] | None


class _Masks(_Open):
    grids: Annotated[list[Grid], Field(min_length=1)]
    anchors: list[_Anchor]


def _within_grids(masks: _Masks) -> _Masks:
    tokens = sum(rows * columns for rows, columns in masks["grids"])
    if any(max(anchor["kept"] or [0]) >= tokens for anchor in masks["anchors"]):
        raise ValueError("an anchor keeps a token that the grids do not have")
    return masks


Masks = Annotated[_Masks, AfterValidator(_within_grids)]
"""`masks/<sample>.json` of a cell: rows and columns of each reference's tokens, and the kept tokens
at each anchor (None: all)."""


class ProbeManifest(_Open):
    """`manifest.json` of a probe."""

    schema: Literal[1]
    model: str
    weights: str
    created: str
    count: Count
    stacks: list[Count]
    layers: list[Count]
    tau: FiniteFloat
    source: NotRequired[str]
    config: NotRequired[CellConfig]


class ProbeRow(_Open):
    """A line of `rows.jsonl` of a probe: one sample."""

    sample: Name
    index: Count
    category: str
    task: str
    branches: list[str]
    grids: Annotated[list[Grid], Field(min_length=1)]


class _Device(_Open):
    name: str


class BenchManifest(_Open):
    """`manifest.json` of a benchmark."""

    schema: Literal[2]
    model: str
    kind: str
    source: str
    weights: str
    scaled_down: bool
    dtype: str
    steps: Count
    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    references: Count
    compiled: str | None
    trim_last: bool
    round_to: Count
    kernel: str
    device: _Device
    lines: list[str]
    refused: dict[str, str]


class _Layout(_Open):
    n_text: Count
    target_grid: Grid
    reference_grids: list[Grid]


class BenchRow(_Open):
    """A line of `rows.jsonl` of a benchmark: one timed pair of runs."""

    label: str
    method: str
    keep: Score | None
    total_full: Seconds
    total_method: Seconds
    transformer_full: Seconds
    transformer_method: Seconds
    flops_full: Score
    flops_method: Score
    calls: Count
    layout: _Layout
    uncompiled: Score | None
    peak_bytes_transformer_full: Score | None
    peak_bytes_transformer_method: Score | None
