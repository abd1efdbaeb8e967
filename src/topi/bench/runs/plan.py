"""A sweep as a file: one line per cluster task, each with its cells.

A plan needs no living shell: `slurm/array.sbatch` runs one task per array index, and any task can
be run again.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from hydra_plugins.topi_sweeper import points
from topi.bench.config.compose import composed, refusals
from topi.bench.config.schema import AXES, Config, axes_read, read_config
from topi.bench.results import validation as schema
from topi.bench.results.keys import canonical
from topi.errors import ToPiError

GPUS = {"kontext": "a100", "flux2": "a100", "qwen_edit": "h20", "qwen_edit_plus": "h20"}
"""Where the paper ran the models of each kind."""
GPU_TYPE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""What may stand for TYPE in `--gres=gpu:TYPE:1`."""
BESIDE = ("logger", "store", "resume", "shard", "devices")
"""Of a configuration: what does not change the numbers of a cell."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell as the overrides that `run.py` would get, and its label in tables."""

    label: str
    overrides: list[str]


@dataclass(frozen=True)
class Task:
    """Cells of one model that one job computes in turn, with the model loaded once.

    `task` is the index in the array, `gpu` the type that SLURM calls it by ("none": cores),
    `experiment` the name behind `experiment=`.
    """

    task: schema.Index
    gpu: Annotated[str, Field(pattern=f"^{GPU_TYPE}$")]
    model: schema.Text
    experiment: str | None
    cells: Annotated[list[PlannedCell], Field(min_length=1)]


def plan(
    overrides: Sequence[str], group: int = 1, gpu: str | None = None, shards: int = 1
) -> list[Task]:
    """The tasks of a sweep, those of a GPU type in a row; equal cells are planned once.

    Args:
        overrides: as for `run.py -m`.
        group: cells of one model in a task, at most.
        gpu: instead of the type in `GPUS`.
        shards: tasks among which the samples of each cell are divided.

    Raises:
        ConfigError: a point of the sweep is impossible.
    """
    for option, value in (("group", group), ("shards", shards)):
        if value < 1:
            raise ToPiError(f"--{option} {value} must be at least 1.")
    if gpu is not None and not re.fullmatch(GPU_TYPE, gpu):
        raise ToPiError(
            f"--gpu {gpu} is not a valid type of GPU: give the TYPE of your cluster's "
            "gpu:TYPE:1, which `sinfo -o %G` lists, or none for cores."
        )
    from topi.bench.runs.assemble import build_method, check  # loads torch
    from topi.bench.runs.identify import label_of

    with refusals():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    master = composed([o.input_line for o in parsed if not o.is_sweep_override()], hydra=True)
    sweeper = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
    arguments = [o.input_line for o in parsed if not o.key_or_group.startswith("hydra")]
    cells: dict[str, tuple[Config, PlannedCell]] = {}
    for point in points(sweeper["params"], sweeper["grids"], arguments):
        _check_literal(point, "This sweep")
        found = composed(point)
        config = read_config(found)
        check(config)
        label = label_of(config, build_method(config))
        cells.setdefault(_identity(config, found), (config, PlannedCell(label, point)))
    if not cells:
        raise ToPiError("This sweep has no cells: name values for its axes, or other grids.")
    models: dict[str, list[tuple[Config, PlannedCell]]] = {}
    for config, cell in cells.values():
        models.setdefault(canonical(config.model), []).append((config, cell))
    chunks = [
        members[start : start + group]
        for members in models.values()
        for start in range(0, len(members), group)
    ]
    if shards > 1:
        chunks = [_shard(chunk, f"{i}/{shards}") for chunk in chunks for i in range(shards)]
    described = [(gpu or GPUS.get(chunk[0][0].model["kind"], "a100"), chunk) for chunk in chunks]
    experiment = master.hydra.runtime.choices.get("experiment")
    return [
        Task(number, kind, chunk[0][0].model["name"], experiment, [cell for _, cell in chunk])
        for number, (kind, chunk) in enumerate(sorted(described, key=lambda pair: pair[0]))
    ]


def _shard(
    chunk: Iterable[tuple[Config, PlannedCell]], shard: str
) -> list[tuple[Config, PlannedCell]]:
    """The same cells, but of their samples only a shard."""
    return [
        (config, PlannedCell(cell.label, [*cell.overrides, f"shard={shard}"]))
        for config, cell in chunk
    ]


def dump(tasks: Iterable[Task]) -> str:
    """The text of a plan file: JSON, a task per line."""
    return "".join(json.dumps(asdict(task)) + "\n" for task in tasks)


def load(path: Path) -> list[Task]:
    """Read a plan file.

    Raises:
        ToPiError: it is not there or not a plan, or cannot be submitted as it is.
    """
    again = f"write one with `topi plan ... > {path.name}`."
    lines = schema.read_text(path, again).split("\n")
    tasks = [
        schema.parse(line, Task, f"{path}, line {number},", again)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not tasks:
        raise ToPiError(f"{path} holds no task: {again}")
    numbers = Counter(task.task for task in tasks)
    if twice := [number for number, times in numbers.items() if times > 1]:
        raise ToPiError(f"{path} has two tasks {twice[0]}: plan both sweeps in files of their own.")
    for task in tasks:
        for cell in task.cells:
            _check_literal(cell.overrides, f"{path}, task {task.task},")
    return tasks


def _check_literal(overrides: Iterable[str], where: str) -> None:
    """Raise a ToPiError if an override asks for something outside the configuration.

    `${model.width}` is fine. `${oc.env:NAME}` is another value on each machine, or a secret.
    """
    with refusals():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if re.search(r"\$\{.*:", str(override.value()), re.DOTALL):
            named = f"{override.key_or_group}={override.value()}"
            raise ToPiError(f"{where} has the override {named!r}: write the value itself.")


def arrays(tasks: Iterable[Task]) -> list[tuple[str, str]]:
    """GPU type -> indices of its tasks as `sbatch --array` takes them, such as "0-3,7"."""
    numbers: dict[str, list[int]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        numbers.setdefault(task.gpu, []).append(task.task)
    return [(gpu, _ranges(found)) for gpu, found in numbers.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, those in a row as "first-last"."""
    rows = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    found = [[number for _, number in row] for _, row in rows]
    return ",".join(f"{row[0]}-{row[-1]}" if row[1:] else str(row[0]) for row in found)


def _identity(config: Config, found: DictConfig) -> str:
    """One text for all configurations of a cell. The key itself needs the weights."""
    content: dict[str, Any] = asdict(config)
    unread = set(AXES) - set(axes_read(found))
    return canonical({k: v for k, v in content.items() if k not in {*unread, *BESIDE}})
