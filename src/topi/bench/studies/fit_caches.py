"""From a configuration to the fit of temporal caches: `topi fit-cache`."""

import json
from collections.abc import Sequence
from pathlib import Path

from topi.bench.config.compose import compose_study
from topi.bench.config.schema import ConfigError
from topi.bench.results import files
from topi.bench.results.cache_fit_file import CacheFit, write_cache_fit
from topi.bench.studies.study import CALIBRATE_READS, Study

SAMPLES = 16  # 4 of each category


def fit_cache(
    overrides: Sequence[str], out: Path | None = None, ship: bool = False
) -> tuple[CacheFit, Path]:
    """Fit TeaCache and MagCache to a model. Also returns where the fit is written.

    Args:
        overrides: of the configuration; the default data are 16 samples of the calibration split.
        out: the JSON to write; by default `<store>/cache_fit/<model>-<key>.json`.
        ship: also tell the config.json of a stand-in, which uses it by default then.

    Raises:
        ToPiError: the configuration is impossible, or there are too few steps.
    """
    config = compose_study(
        "fit-cache", overrides, CALIBRATE_READS, split="calibration", count=SAMPLES
    )
    study = Study(config)
    shipped = study.editor.calibration_file
    if ship and shipped is None:
        raise ConfigError(f"--ship is for stand-ins; the weights of {study.editor.name} are not.")

    from topi.bench.studies import cache_fit as evaluation
    from topi.bench.studies.observation import origin_of

    key = study.key(fit="cache")
    out = out or Path(config.store) / "cache_fit" / f"{key}.json"
    origin = origin_of(study.editor, config.seed) | study.origin(key)
    fit = evaluation.fit_cache(study.editor, study.data, config.seed, origin)
    write_cache_fit(out, fit)
    if ship:
        settings_file = shipped.parent / "config.json"
        settings = json.loads(settings_file.read_text())
        settings["temporal_cache"] = {"weights": study.editor.fingerprint(), **fit.caches}
        files.write_json(settings_file, settings)
    return fit, out
