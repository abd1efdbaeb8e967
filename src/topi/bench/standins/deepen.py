"""A stand-in of more layers that starts as a trained one of fewer.

A new block is a copy of the block before it whose outputs are closed: the whole is the same
function at first (Net2Net, arXiv 1511.05641, deepens in the same spirit), and training opens them.
"""

import torch
from torch import Tensor, nn

from topi.bench.config.schema import ConfigError

STACKS = ("transformer_blocks", "single_transformer_blocks")
OUTPUTS = (
    *("attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.2"),
    *("img_mlp.net.2", "txt_mlp.net.2", "proj_out"),
)
"""The layers of a block, of any family, whose output is added to its input."""


@torch.no_grad()
def deepened(source: nn.Module, deeper: nn.Module) -> nn.Module:
    """`deeper` with the weights of `source`, so that both compute the same.

    Args:
        source: a trained transformer.
        deeper: one of the same family and width with as many blocks or more in each stack.

    Raises:
        ConfigError: it is narrower or wider, or has fewer blocks.
    """
    depths = {name: (depth_of(source, name), depth_of(deeper, name)) for name in STACKS}
    if any(old > new for old, new in depths.values()):
        changes = ", ".join(f"{name}: {old} to {new}" for name, (old, new) in depths.items())
        raise ConfigError(f"deepen=true cannot remove layers ({changes}).")
    states = source.state_dict()
    found = {key: value for key, value in states.items() if not key.startswith(STACKS)}
    closed: list[str] = []
    for name, (old, new) in depths.items():
        for place, (block, copied) in enumerate(origins(old, new)):
            own = f"{name}.{block}."
            part = {k.removeprefix(own): v for k, v in states.items() if k.startswith(own)}
            found |= {f"{name}.{place}.{key}": value for key, value in part.items()}
            closed += [f"{name}.{place}"] * copied
    try:
        deeper.load_state_dict(found)
    except RuntimeError as error:
        raise ConfigError(
            "deepen=true adds layers and changes no width: heads, head_dim, axes and the rest of "
            f"model.transformer must be those of the weights to start from. {error}"
        ) from error
    for block in closed:
        for output in OUTPUTS:
            close(deeper.get_submodule(block), output)
    return deeper


def depth_of(transformer: nn.Module, stack: str) -> int:
    """How many blocks a stack has; 0 if there is no such stack."""
    return len(getattr(transformer, stack, ()))


def origins(old: int, new: int) -> list[tuple[int, bool]]:
    """For each of `new` blocks: the block of `old` it comes from, and True if it is a further copy.

    Copies are spread evenly.
    """
    blocks = [place * old // new for place in range(new)]
    return [(block, block in blocks[:place]) for place, block in enumerate(blocks)]


def close(block: nn.Module, output: str) -> None:
    """Zero a layer of a block, if it has one of that name."""
    try:
        layer = block.get_submodule(output)
    except AttributeError:
        return
    parameters: list[Tensor] = list(layer.parameters())
    for parameter in parameters:
        parameter.zero_()
