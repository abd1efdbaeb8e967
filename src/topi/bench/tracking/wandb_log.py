"""What an offline W&B run has on disk.

Its log is a file of length-prefixed protobuf records in 32 KiB blocks, as LevelDB writes them. W&B
has no public reader.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topi.bench.results.files import read_bytes

HEADER, BLOCK = 7, 32 * 1024  # bytes
FULL, LAST = 1, 4  # kinds of a chunk that end a record


@dataclass
class LoggedRun:
    """A run as its log tells it. `exit` is its exit code, None if it was cut off."""

    id: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)  # name -> files
    exit: int | None = None

    @property
    def steps(self) -> list[int]:
        """W&B's step of each line of the history."""
        return [line["_step"] for line in self.history]


def read_log(folder: Path) -> LoggedRun:
    """Read the log in the folder of a run, as far as it was written.

    Raises:
        Exception: of whatever kind, if it is damaged or of another version of W&B.
    """
    run = LoggedRun()
    for path in folder.glob("*.wandb"):
        for record in _records(read_bytes(path)):
            _add(run, record)
    return run


def _add(run: LoggedRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        about = record.run
        run.id, run.name, run.group = about.run_id, about.display_name, about.run_group
        run.tags = list(about.tags)
        run.config |= _values(about.config.update)
    elif kind == "config":
        run.config |= _values(record.config.update)
    elif kind == "history":
        run.history.append(_values(record.history.item))
    elif kind == "summary":
        run.summary |= _values(record.summary.update)
    elif kind == "artifact":
        _add_artifact(run, record.artifact)
    elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
        _add_artifact(run, record.request.log_artifact.artifact)
    elif kind == "exit":
        run.exit = record.exit.exit_code


def _add_artifact(run: LoggedRun, artifact: Any) -> None:
    run.artifacts[artifact.name] = [entry.path for entry in artifact.manifest.contents]


def _values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(content: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    position, parts = HEADER, b""
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            return  # cut off
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
