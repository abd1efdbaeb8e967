"""Records of a cell with every field that has to be there."""


def about(**more):
    """A manifest."""
    fields = {"key": "m-1", "model": "m", "method": "topi", "label": "topi", "params": {}}
    fields |= {"count": 2, "created": "2026-01-01T10:00:00", "full_key": "m-1", "full": {}}
    return fields | more


def row(sample, index=0, **more):
    """The row of a sample."""
    fields = {"sample": sample, "index": index, "category": "c", "task": "t", "instruction": "i"}
    fields |= {"psnr": 30.0 + index, "ssim": 0.9, "keep_ratio": 0.5, "flop_speedup": 1.5}
    return fields | more


def pair(sample, repeat=0, **more):
    """A timed pair of runs of a sample."""
    return {"sample": sample, "repeat": repeat, "seconds_full": 2.0, "seconds_method": 1.0} | more
