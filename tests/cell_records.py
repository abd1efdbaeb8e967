"""Records of a cell with every field that has to be there, how they get damaged and grow old."""

import json
import os

OTHERS = (None, True, -1, 1.5, 10**30, "", "../x", [], [[]], {}, {"x": []}, [None], float("nan"))
DEEP = "@deep@"


def about(**more):
    """A manifest."""
    fields = {"key": "m-1", "model": "m", "method": "topi", "label": "topi", "params": {}}
    fields |= {"count": 2, "created": "2026-01-01T10:00:00", "full_key": "m-1", "full": {}}
    fields |= {"steps": 3}
    return fields | more


def row(sample, index=0, **more):
    """The row of a sample."""
    fields = {"sample": sample, "index": index, "category": "c", "task": "t", "instruction": "i"}
    fields |= {"psnr": 30.0 + index, "ssim": 0.9, "keep_ratio": 0.5, "flop_speedup": 1.5}
    return fields | more


def pair(sample, repeat=0, **more):
    """A timed pair of runs of a sample."""
    return {"sample": sample, "repeat": repeat, "seconds_full": 2.0, "seconds_method": 1.0} | more


def mutated(content, dice):
    """The JSON of a record with one field dropped, of another type or value, or nested deeply."""
    content = json.loads(json.dumps(content))
    inside = content
    while True:
        key = dice.choice([*inside] if isinstance(inside, dict) else range(len(inside)))
        if not (isinstance(inside[key], dict | list) and inside[key] and dice.random() < 0.6):
            break
        inside = inside[key]
    choice = dice.choice(["drop", "deep", "other", "other", "other"])
    if choice == "drop":
        del inside[key]
    else:
        inside[key] = DEEP if choice == "deep" else dice.choice(OTHERS)
    return json.dumps(content).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


def settle(store, seconds=3600):
    """Let time pass since the cells were written."""
    for cell in (store.root / "cells").iterdir():
        then = cell.stat().st_mtime_ns - seconds * 10**9
        for folder in (cell, cell / "images"):
            if folder.exists():
                os.utime(folder, ns=(then, then))
