"""Reads an offline W&B run back: a file of length-prefixed protobuf records in 32 KiB blocks."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def read_run(folder: Path) -> dict[str, Any]:
    """Its id, config, history, summary and exit code."""
    (path,) = folder.glob("*.wandb")
    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name}
            run["config"] |= values(record.run.config.update)
        elif kind == "config":
            run["config"] |= values(record.config.update)
        elif kind == "history":
            run["history"].append(values(record.history.item))
        elif kind == "summary":
            run["summary"] |= values(record.summary.update)
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run
