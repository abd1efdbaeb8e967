"""Which layers score the tokens, if not the representative ones (paper, Table 5)."""

import random


def choose_layers(
    strategy: str, depth: int, count: int = 3, seed: int = 0
) -> tuple[int, ...] | None:
    """Layers by strategy, ascending and 0-based.

    Args:
        strategy: "representative" (the model's own set, hence None), "all", "first" or "last"
            `count`, or `count` "random" ones.
        depth: layers of the model.
        count: how many; at most all.
        seed: of the random choice.

    Raises:
        ValueError: unknown strategy, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"layers.count={count} must be at least 1.")
    count = min(count, depth)
    if strategy == "representative":
        return None
    if strategy == "all":
        return tuple(range(depth))
    if strategy == "first":
        return tuple(range(count))
    if strategy == "last":
        return tuple(range(depth - count, depth))
    if strategy == "random":
        return tuple(sorted(random.Random(seed).sample(range(depth), count)))
    raise ValueError(f"layers={strategy} is unknown.")
