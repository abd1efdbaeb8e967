"""From a configuration to the fit of temporal caches: `topi fit-cache`."""

from collections.abc import Sequence
from pathlib import Path

from topi.bench.config.compose import compose_study
from topi.bench.results import files
from topi.bench.results.cache_fit_file import CacheFit, write_cache_fit
from topi.bench.studies.study import CALIBRATE_READS, Study

SAMPLES = 16  # 4 of each category


def fit_cache(
    overrides: Sequence[str], out: Path | None = None, ship: bool = False
) -> tuple[CacheFit, Path]:
    """Fit TeaCache and MagCache to a model. Also returns the JSON's path.

    A killed run continues at the next sample.

    Args:
        overrides: of the configuration; the default data are 16 samples of the calibration split.
        out: the JSON to write; by default `<store>/cache_fit/<model>-<key>.json`.
        ship: also write it into the config.json of a stand-in, which then uses it by default.

    Raises:
        ToPiError: the configuration is impossible, there are too few steps, or another process does
            the same.
    """
    config = compose_study(
        "fit-cache", overrides, CALIBRATE_READS, split="calibration", count=SAMPLES
    )
    study = Study(config)
    study.check_ship(ship)

    from topi.bench.studies import cache_fit as evaluation
    from topi.bench.studies.observation import origin_of

    with study.place("cache_fit", out, fit="cache") as place:
        origin = origin_of(study.editor, config.seed) | study.origin(place.key)
        fit = evaluation.fit_cache(study.editor, study.data, config.seed, origin, place.rows)
        write_cache_fit(place.out, fit)
        if ship:
            settings_file = study.editor.calibration_file.parent / "config.json"
            settings = files.read_json(settings_file)
            settings["temporal_cache"] = {"weights": study.editor.fingerprint(), **fit.caches}
            files.write_json(settings_file, settings)
    return fit, place.out
