"""From a configuration to searched schedules of DaTo: `topi search`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from topi.bench.config.compose import compose_study
from topi.bench.config.schema import ConfigError, check_choice
from topi.bench.results import files
from topi.bench.studies.study import CALIBRATE_READS, Study

if TYPE_CHECKING:
    from topi.bench.studies.schedule_search import Schedule

SCHEMA = 1
SAMPLES = 4  # one of each category
METHODS = ("dato", "dato_ref")


def search(
    overrides: Sequence[str],
    method: str = "dato",
    population: int = 15,
    generations: int = 20,
    out: Path | None = None,
) -> tuple[list["Schedule"], Path]:
    """Search schedules. A killed search continues where it was. Also returns the JSON's path.

    Args:
        overrides: of the configuration; the default data are 4 samples of the calibration split.
        method: dato or dato_ref.
        population, generations: of NSGA-II.
        out: the JSON to write; by default `<store>/search/<model>-<key>.json`.

    Raises:
        ToPiError: the configuration is impossible, or another process does the same.
    """
    check_choice("--method", method, METHODS)
    config = compose_study("search", overrides, CALIBRATE_READS, split="calibration", count=SAMPLES)
    study = Study(config)
    if study.editor.steps < 2:
        raise ConfigError("A schedule needs at least two steps; raise model.steps.")

    from topi.bench.studies.observation import origin_of
    from topi.bench.studies.schedule_search import Judge
    from topi.bench.studies.schedule_search import search as run

    samples = [study.data[i] for i in range(len(study.data))]
    with study.place("search", out, search=method) as place:
        judge = Judge(study.editor, samples, config.seed, method, place.rows)
        front = run(judge, judge.space, population, generations, config.seed)
        origin = origin_of(study.editor, config.seed) | study.origin(place.key)
        about = {"method": method, "population": population, "generations": generations}
        schedules = [asdict(each) | {"overrides": overrides_of(method, each)} for each in front]
        content = {"schema": SCHEMA, **about, "front": schedules, "origin": origin}
        files.write_json(place.out, content)
    return front, place.out


def overrides_of(method: str, schedule: "Schedule") -> list[str]:
    """What to give `run.py` to run a schedule."""
    lists = {"ratio": schedule.ratio, "depths": schedule.depths}
    given = [f"method.{name}=[{','.join(map(str, values))}]" for name, values in lists.items()]
    return [f"method={method}", *given]
