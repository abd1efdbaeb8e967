"""A calibration on disk: the representative layers (Eq. 5) and the curves they were chosen from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topi.errors import ToPiError
from topi.results import files

SCHEMA = 1
"""Of the JSON; a file of another schema is refused."""
PAPER_LIMIT = 0.3
"""The total attention to references stays below it in the paper (section 3.2, Fig. 3)."""
CONCENTRATED = 2.0
"""Few layers hold the attention if theirs is so many times the median of the others. Ours."""
CONSISTENT = 2 / 3
"""Two sets of layers are alike if they share at least so many. Ours."""


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

    samples: int
    layers: tuple[int, ...]
    by_layer: tuple[float, ...]
    by_step: tuple[float, ...]


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

    subsets: int
    seed: int
    same_set: float
    frequency: tuple[float, ...]


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
    samples: tuple[dict[str, Any], ...]
    origin: dict[str, Any]

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
        if (own := self.origin.get("weights")) != weights:
            raise ToPiError(
                f"This calibration of {self.origin.get('model')} is of the weights {own}, but the "
                f"model has {weights}: run `topi calibrate` on this model, or name the layers "
                "with method.layers=[...]."
            )
        return self.layers

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it is written."""
        return {"schema": SCHEMA, "layers": list(self.layers), **asdict(self)}


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the JSON in one step; one line per part, as the curves are long."""
    parts = [f"{json.dumps(key)}: {json.dumps(v)}" for key, v in calibration.as_dict().items()]
    files.write(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def read_calibration(path: Path | str) -> Calibration:
    """Read what `write_calibration` wrote.

    Raises:
        ToPiError: there is no such file, or it is no calibration of this schema.
    """
    again = "write one with `topi calibrate`."
    content = files.read_schema(path, SCHEMA, "calibration", again)
    try:
        calibration = Calibration(
            overall=_curves(content["overall"]),
            by_category={name: _curves(each) for name, each in content["by_category"].items()},
            stability=Stability(**_tuples(content["stability"])),
            samples=tuple(content["samples"]),
            origin=content["origin"],
        )
        layers = tuple(content["layers"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ToPiError(f"{path} is a damaged calibration ({error!r}): {again}") from error
    if layers != calibration.layers:
        raise ToPiError(f"{path} names two different sets of layers: {again}")
    return calibration


def _curves(content: dict[str, Any]) -> Curves:
    return Curves(**_tuples(content))


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
