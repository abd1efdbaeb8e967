"""The fit of temporal caches to a model, on disk: what `topi fit-cache` writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topi.errors import ToPiError
from topi.results import files

SCHEMA = 1
"""Of the JSON; a file of another schema is refused."""


@dataclass(frozen=True)
class CacheFit:
    """What temporal caches must know of a model.

    Args:
        caches: name of a cache -> its fitted parameters: for "teacache" `coefficients`, highest
            power first, `ceiling` and `threshold`; for "magcache" the `ratios` of all steps.
        quality: name of a cache -> how well that describes the samples, and over how many points.
        origin: model, weights and data fingerprints, seed, steps, versions, device, ...
    """

    caches: dict[str, dict[str, Any]]
    quality: dict[str, dict[str, float]]
    origin: dict[str, Any]

    def caches_for(self, weights: str) -> dict[str, dict[str, Any]]:
        """The fitted parameters, for a model of these weights.

        Raises:
            ToPiError: the fit is of other weights.
        """
        if (own := self.origin.get("weights")) != weights:
            raise ToPiError(
                f"This cache fit of {self.origin.get('model')} is of the weights {own}, but the "
                f"model has {weights}: run `topi fit-cache` on this model."
            )
        return self.caches


def write_cache_fit(path: Path, fit: CacheFit) -> None:
    """Write the JSON in one step; one line per part."""
    parts = {"schema": SCHEMA, **asdict(fit)}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in parts.items()]
    files.write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_cache_fit(path: Path | str) -> CacheFit:
    """Read what `write_cache_fit` wrote.

    Raises:
        ToPiError: there is no such file, or it is no fit of this schema.
    """
    again = "write one with `topi fit-cache`."
    content = files.read_schema(path, SCHEMA, "cache fit", again)
    if set(content) != {"caches", "quality", "origin"}:
        raise ToPiError(f"The cache fit {path} is incomplete: {again}")
    return CacheFit(**content)
