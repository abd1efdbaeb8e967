"""From a configuration to a study of a model's attention: `topi calibrate` and `topi probe`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from topi.bench.config.compose import compose_study
from topi.bench.config.schema import Config, ConfigError
from topi.bench.results import files
from topi.bench.results.calibration_file import Calibration, write_calibration
from topi.bench.results.keys import digest
from topi.bench.results.probe_run import ProbeRun, probe_run
from topi.bench.runs.resume import alone
from topi.errors import ToPiError

SAMPLES = 48  # 12 of each category, as in the paper (section 5.1)
CALIBRATE_READS = ("model", "data", "seed", "store")
PROBE_READS = (*CALIBRATE_READS, "layers", "tau", "size")


@dataclass(frozen=True)
class Place:
    """Where a study keeps its result.

    Args:
        key: the name of the result.
        rows: the finished parts, which a killed run reads when it is started again.
        out: the result itself.
    """

    key: str
    rows: Path
    out: Path


class Study:
    """A loaded model and its data.

    Raises:
        ConfigError: something in the configuration is impossible.
    """

    def __init__(self, config: Config) -> None:
        from topi.bench.runs import assemble  # loads torch, which a refusal need not wait for
        from topi.bench.runs.gpu import claim_gpu
        from topi.bench.runs.identify import full_run
        from topi.bench.runs.layer_choice import layers_of
        from topi.models import adapter_for

        assemble.check(config)
        self.config = config
        self.data = assemble.load_data(config.data)
        claim_gpu(Path(config.store))
        self.editor = assemble.open_editor(config)
        self.facts = adapter_for(self.editor.pipe).facts
        self.full = full_run(config, self.editor, self.data)
        self._layers_of = layers_of

    def layers(self) -> tuple[int, ...]:
        """The layers that the configuration chooses.

        Raises:
            ToPiError: they are unknown, or this model does not have them.
        """
        layers = self._layers_of(self.config.layers, self.facts, self.editor)
        if layers is None:
            raise ToPiError(
                f"The representative layers of {self.editor.name} are unknown. Run `topi calibrate "
                f"model={self.editor.name}` first and give its file with layers.file=PATH."
            )
        if max(layers) >= self.facts.depth:
            last = self.facts.depth - 1
            raise ToPiError(f"Layers {layers} do not all exist: the last of this model is {last}.")
        return tuple(sorted(layers))

    def key(self, **more: Any) -> str:
        """The name of a result: the model and a hash of everything that the result depends on.

        Code and versions are part of the hash, so a resumed run never mixes two of them.
        """
        from topi.bench.studies.observation import origin_of

        origin = origin_of(self.editor, self.config.seed)
        content = {
            "full": self.full,
            "samples": self.data.ids,
            "code": [origin.get("code"), origin["versions"]],
            **more,
        }
        return f"{self.editor.name}-{digest(content)}"

    def origin(self, key: str) -> dict[str, Any]:
        """Where a result comes from. It names no path, so it can be published."""
        data = {k: v for k, v in asdict(self.config.data).items() if k != "path"}
        return {
            "key": key,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.editor.config.source,
            "data": self.full["data"],
            "stacks": list(self.facts.stacks),
            "config": {"model": self.full["model"], "data": data},
        }

    @contextmanager
    def place(self, kind: str, out: Path | None = None, **more: Any) -> Iterator[Place]:
        """Where the result goes. Only one process at a time can work there.

        Args:
            kind: of study; the folder in the store.
            out: the JSON to write; by default `<store>/<kind>/<key>.json`.
            more: what else the result depends on, see `key`.

        Raises:
            ToPiError: another process does the same.
        """
        key, folder = self.key(**more), Path(self.config.store) / kind
        with alone(files.lock(folder / f".{key}.lock"), f"{kind} study {key}"):
            yield Place(key, folder / f"{key}.rows.jsonl", out or folder / f"{key}.json")

    def check_ship(self, ship: bool) -> None:
        """Raise a ConfigError if a result is to be shipped and this model is no stand-in."""
        if ship and self.editor.calibration_file is None:
            raise ConfigError(f"--ship needs a stand-in; {self.editor.name} is not one.")


def calibrate(
    overrides: Sequence[str], out: Path | None = None, top: int = 3, ship: bool = False
) -> tuple[Calibration, Path]:
    """Calibrate a model. A killed run continues at the next sample. Also returns the JSON's path.

    Args:
        overrides: of the configuration; the default data are the 48 samples of the calibration
            split.
        out: the JSON to write; by default `<store>/calibration/<model>-<key>.json`.
        top: how many layers are representative (M of Eq. 5).
        ship: also put it beside the weights of a stand-in, which then use it by default.

    Raises:
        ToPiError: the configuration is impossible, or another process does the same.
    """
    config = compose_study(
        "calibrate", overrides, CALIBRATE_READS, split="calibration", count=SAMPLES
    )
    study = Study(config)
    if not 1 <= top <= study.facts.depth:
        raise ConfigError(f"--top {top} must be between 1 and {study.facts.depth} (all layers).")
    study.check_ship(ship)

    from topi.bench.studies import calibration as evaluation

    with study.place("calibration", out) as place:
        calibration = evaluation.calibrate(
            study.editor, study.data, config.seed, top, study.origin(place.key), place.rows
        )
        write_calibration(place.out, calibration)
        if ship:
            evaluation.ship(calibration, study.editor.calibration_file)
    return calibration, place.out


def probe(overrides: Sequence[str]) -> ProbeRun:
    """Probe a model's attention for Figs. 1-3 and 7. A killed run continues at the next sample.

    Args:
        overrides: of the configuration; by default 48 samples of the evaluation split.

    Raises:
        ToPiError: the configuration is impossible, or another process does the same.
    """
    config = compose_study("probe", overrides, PROBE_READS, count=SAMPLES)
    study = Study(config)

    from topi.bench.studies import probing
    from topi.methods.paper.topi import DEFAULT_TAU

    layers, tau = study.layers(), DEFAULT_TAU if config.tau is None else config.tau
    run = probe_run(config.store, study.key(layers=layers, tau=tau))
    with alone(run.lock(), f"probe {run.key}"):
        about = {**study.origin(run.key), "count": len(study.data), "layers": layers, "tau": tau}
        probing.probe(study.editor, study.data, run, about, config.seed)
    return run
