"""The fit of temporal caches to a model, on disk: what `topi fit-cache` writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict

from topi.bench.results import files
from topi.bench.results import validation as schema
from topi.bench.results.calibration_file import Origin, check_weights

SCHEMA = 1
"""Of the JSON; a file of another schema is refused."""


class TeaCacheFit(TypedDict):
    """The polynomial of `topi.TeaCache`, highest power first."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    coefficients: Annotated[list[FiniteFloat], Field(min_length=1)]
    ceiling: NotRequired[schema.AtLeastZero]
    threshold: NotRequired[schema.AtLeastZero]


class MagCacheFit(TypedDict):
    """The ratio of each step for `topi.MagCache`."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    ratios: Annotated[list[schema.AboveZero], Field(min_length=1)]
    threshold: NotRequired[schema.AtLeastZero]
    max_skips: NotRequired[schema.Index]
    always: NotRequired[list[schema.Index]]


class Caches(TypedDict):
    """The fits by the name of the cache."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    teacache: NotRequired[TeaCacheFit]
    magcache: NotRequired[MagCacheFit]


@dataclass(frozen=True)
class CacheFit:
    """What temporal caches must know of a model.

    Args:
        caches: name of a cache -> its fitted parameters.
        quality: name of a cache -> how well that describes the samples, and over how many points.
        origin: model, weights and data fingerprints, seed, steps, versions, device, ...
    """

    caches: Caches
    quality: dict[str, dict[str, FiniteFloat]]
    origin: Origin

    def caches_for(self, weights: str) -> Caches:
        """The fitted parameters, for a model of these weights.

        Raises:
            ToPiError: the fit is of other weights.
        """
        check_weights("cache fit", self.origin, weights, "run `topi fit-cache` on this model")
        return self.caches


def write_cache_fit(path: Path, fit: CacheFit) -> None:
    """Write it as JSON, in one step."""
    files.write_parts(path, {"schema": SCHEMA, **asdict(fit)})


def read_cache_fit(path: Path | str) -> CacheFit:
    """Read what `write_cache_fit` wrote.

    Raises:
        ToPiError: there is no such file, or it is not valid.
    """
    return schema.read(path, CacheFit, "write one with `topi fit-cache`.", SCHEMA)
