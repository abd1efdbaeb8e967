"""A calibration on disk: the representative layers (Eq. 5) and the curves they were chosen from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from topi.bench.results import files
from topi.bench.results import validation as schema
from topi.errors import ToPiError

SCHEMA = 1
"""Of the JSON; a file of another schema is refused."""
PAPER_LIMIT = 0.3
"""The total attention to references stays below it in the paper (section 3.2, Fig. 3)."""
CONCENTRATED = 2.0
"""Few layers hold the attention if theirs is so many times the median of the others. Ours."""
CONSISTENT = 2 / 3
"""Two sets of layers are alike if they share at least so many. Ours."""


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise ValueError("the layers should be different and in ascending order")
    return layers


Layers = Annotated[tuple[schema.Index, ...], Field(min_length=1), AfterValidator(_ascending)]
Shares = Annotated[tuple[schema.Share, ...], Field(min_length=1)]


class Origin(TypedDict):
    """Where a result comes from: the model, its weights' fingerprint, and anything else."""

    __pydantic_config__ = ConfigDict(extra="allow")
    model: NotRequired[str]
    weights: NotRequired[str]


class Sample(TypedDict):
    """What one sample contributes; more fields are allowed."""

    __pydantic_config__ = ConfigDict(extra="allow")
    sample: str
    by_layer: list[schema.Share]
    by_step: list[schema.Share]


@dataclass(frozen=True)
class Curves:
    """Means over some calibration samples.

    Args:
        samples: how many.
        layers: the top-M layers, ascending and 0-based (Eq. 5).
        by_layer: S of each layer, the share of the target tokens' attention that goes to references
            (Eq. 4 as a mean over heads, target tokens, steps and CFG branches), in [0, 1].
        by_step: the same of each step, mean over layers.
    """

    samples: schema.Index
    layers: Layers
    by_layer: Shares
    by_step: Shares

    def __post_init__(self) -> None:
        if self.layers[-1] >= len(self.by_layer):
            raise ValueError(f"layer {self.layers[-1]} has no value in by_layer")


@dataclass(frozen=True)
class Stability:
    """How much the choice depends on the samples.

    Args:
        subsets: bootstrap subsets of the samples, drawn with replacement; each has as many of
            each category, if there are two samples or more of each.
        seed: of the draw.
        same_set: share of subsets that choose the same set of layers as all samples.
        frequency: of each layer, the share of subsets that choose it.
    """

    subsets: schema.Index
    seed: int
    same_set: schema.Share
    frequency: tuple[schema.Share, ...]


def check_weights(kind: str, origin: Origin, weights: str, remedy: str) -> None:
    """Raise a ToPiError unless a result is of these weights.

    Args:
        kind: of the result.
        origin: of the result.
        weights: the fingerprint of the model that is to use it.
        remedy: what to do if it is not.
    """
    if (own := origin.get("weights")) != weights:
        raise ToPiError(
            f"This {kind} of {origin.get('model')} is of the weights {own}, but the model has "
            f"{weights}: {remedy}."
        )


@dataclass(frozen=True)
class Calibration:
    """What `topi calibrate` writes and `layers=representative` reads.

    Args:
        overall: over all samples; `overall.layers` is the representative set.
        by_category: the same for each category alone (Fig. 1).
        stability: of the set.
        samples: one record per sample: its id, category and task, and its `by_layer`, `by_step`.
        origin: model, weights and data fingerprints, seed, steps, versions, device, ...
    """

    overall: Curves
    by_category: dict[str, Curves]
    stability: Stability
    samples: tuple[Sample, ...]
    origin: Origin

    @property
    def layers(self) -> tuple[int, ...]:
        """The representative layers."""
        return self.overall.layers

    def layers_for(self, weights: str) -> tuple[int, ...]:
        """The representative layers, for a model of these weights.

        Args:
            weights: the fingerprint of the model that is to use them.

        Raises:
            ToPiError: it was calibrated on other weights.
        """
        check_weights(
            "calibration",
            self.origin,
            weights,
            "run `topi calibrate` on this model, or name the layers with method.layers=[...]",
        )
        return self.layers


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write it as JSON, in one step."""
    content = {"schema": SCHEMA, "layers": list(calibration.layers), **asdict(calibration)}
    files.write_parts(path, content)


def read_calibration(path: Path | str) -> Calibration:
    """Read what `write_calibration` wrote.

    Raises:
        ToPiError: there is no such file, or it is not valid.
    """
    again = "write one with `topi calibrate`."
    calibration = schema.read(path, Calibration, again, SCHEMA)
    if schema.read(path, _Layers, again)["layers"] != calibration.layers:
        raise ToPiError(f"{path} names two different sets of layers: {again}")
    return calibration


class _Layers(TypedDict):
    layers: Layers
