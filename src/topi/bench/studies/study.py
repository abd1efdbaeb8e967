"""From a configuration to a study of a model's attention: `topi calibrate` and `topi probe`."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from topi.bench.config.compose import compose_study
from topi.bench.config.schema import Config, ConfigError
from topi.bench.results import files
from topi.bench.results.calibration_file import Calibration, write_calibration
from topi.bench.results.keys import digest
from topi.bench.results.probe_run import ProbeRun, probe_run
from topi.errors import ToPiError

SAMPLES = 48  # 12 of each category, as in the paper (section 5.1)
CALIBRATE_READS = ("model", "data", "seed", "store")
PROBE_READS = (*CALIBRATE_READS, "layers", "tau", "size")


class Study:
    """A loaded model and its data, and what is to be told of both.

    Raises:
        ConfigError: something in the configuration is impossible.
    """

    def __init__(self, config: Config) -> None:
        from topi.bench.runs import experiment  # loads torch, which a refusal need not wait for
        from topi.bench.runs.gpu import claim_gpu
        from topi.models import adapter_for

        experiment.check(config)
        self.config = config
        self.data = experiment.load_data(config.data)
        claim_gpu(Path(config.store))
        self.editor = experiment.open_editor(config)
        self.facts = adapter_for(self.editor.pipe).facts
        self.full = experiment.full_run(config, self.editor, self.data)
        self._layers_of = experiment.layers_of

    def layers(self) -> tuple[int, ...]:
        """The layers that the configuration chooses.

        Raises:
            ToPiError: they are not known, or not of this model.
        """
        layers = self._layers_of(self.config.layers, self.facts, self.editor)
        if layers is None:
            raise ToPiError(
                f"No representative layers of {self.editor.name} are known: run `topi calibrate "
                f"model={self.editor.name}` first and give its file with layers.file=PATH."
            )
        if max(layers) >= self.facts.depth:
            last = self.facts.depth - 1
            raise ToPiError(f"Layers {layers} are not of this model, whose last is {last}.")
        return tuple(sorted(layers))

    def key(self, **more: Any) -> str:
        """The name of the result: the model and a hash over all that it depends on.

        That includes code and versions, so that a resumed run never mixes them.
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
        """Where a result comes from; no path, so that it can be published."""
        data = {k: v for k, v in asdict(self.config.data).items() if k != "path"}
        return {
            "key": key,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.editor.config.source,
            "data": self.full["data"],
            "stacks": list(self.facts.stacks),
            "config": {"model": self.full["model"], "data": data},
        }


def calibrate(
    overrides: Sequence[str], out: Path | None = None, top: int = 3, ship: bool = False
) -> tuple[Calibration, Path]:
    """Calibrate a model; a killed run goes on at the next sample. Also returns where it is written.

    Args:
        overrides: of the configuration; the default data are the 48 samples of the calibration
            split.
        out: the JSON to write; by default `<store>/calibration/<model>-<key>.json`.
        top: how many layers are representative (M of Eq. 5).
        ship: also put it beside the weights of a stand-in, which use it by default then.

    Raises:
        ToPiError: the configuration is impossible, or another process does the same.
    """
    config = compose_study(
        "calibrate", overrides, CALIBRATE_READS, split="calibration", count=SAMPLES
    )
    study = Study(config)
    if not 1 <= top <= study.facts.depth:
        raise ConfigError(f"--top {top} must be between 1 and {study.facts.depth}, all layers.")
    if ship and study.editor.calibration_file is None:
        raise ConfigError(f"--ship is for stand-ins; the weights of {study.editor.name} are not.")

    from topi.bench.studies import calibration as evaluation

    key = study.key()
    folder = Path(config.store) / "calibration"
    rows, out = folder / f"{key}.rows.jsonl", out or folder / f"{key}.json"
    with files.lock(folder / f".{key}.lock") as ours:
        if not ours:
            raise ToPiError(f"Another process is calibrating {key}; leave it to that.")
        calibration = evaluation.calibrate(
            study.editor, study.data, config.seed, top, study.origin(key), rows
        )
        write_calibration(out, calibration)
        if ship:
            evaluation.ship(calibration, study.editor.calibration_file)
    return calibration, out


def probe(overrides: Sequence[str]) -> ProbeRun:
    """Probe a model's attention for Figs. 1-3 and 7; a killed run goes on at the next sample.

    Args:
        overrides: of the configuration; by default 48 samples of the evaluation split.

    Raises:
        ToPiError: the configuration is impossible, or another process does the same.
    """
    config = compose_study("probe", overrides, PROBE_READS, count=SAMPLES)
    study = Study(config)

    from topi.bench.studies import probing
    from topi.methods.topi import DEFAULT_TAU

    layers, tau = study.layers(), DEFAULT_TAU if config.tau is None else config.tau
    run = probe_run(config.store, study.key(layers=layers, tau=tau))
    with run.lock() as ours:
        if not ours:
            raise ToPiError(f"Another process is probing {run.key}; leave it to that.")
        about = {**study.origin(run.key), "count": len(study.data), "layers": layers, "tau": tau}
        probing.probe(study.editor, study.data, run, about, config.seed)
    return run
