"""Which layers score the tokens (paper, Table 5)."""

import random

from topi.bench.config.schema import LayersConfig
from topi.bench.editors.editor import Editor
from topi.bench.results.calibration_file import read_calibration
from topi.models import ModelFacts


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


def layers_of(
    config: LayersConfig, facts: ModelFacts | None = None, editor: Editor | None = None
) -> tuple[int, ...] | None:
    """The layers of a strategy; None if no representative layers of this model are known.

    Representative layers come from `layers.file`, else from the model's configuration, else from
    the calibration that its weights ship with, else from the paper.

    Raises:
        ToPiError: the calibration cannot be read, or is of other weights.
    """
    depth = facts.depth if facts else 1
    layers = choose_layers(config.strategy, depth, config.count, config.seed)
    if layers is not None:
        return layers
    file = config.file
    if file is None and editor is not None and editor.config.representative_layers is None:
        shipped = editor.calibration_file
        file = shipped if shipped and shipped.is_file() else None
    if file is not None:
        calibration = read_calibration(file)
        return calibration.layers_for(editor.fingerprint()) if editor else calibration.layers
    return facts.representative_layers if facts else None
