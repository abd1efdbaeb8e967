"""Weights between those before and after a run: `python -m topi.bench.standins.average AFTER OUT`.

Interpolating between a model and its fine-tuned self often edits better than either (WiSE-FT,
arXiv 2109.01903). Choose the share on the calibration split.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from topi.bench.editors.standin.weights import load_parts, save_standin, weights_folder
from topi.errors import ToPiError


def average(before: Path, after: Path, share: float, out: Path) -> None:
    """Write (1 - share) of the weights `before` a run and share of those `after` it.

    The latents must be the same. Recipe and curves are those of the run, and say that it was
    averaged; `topi.bench.standins start=OUT` goes on from there.

    Args:
        before, after, out: folders with a stand-in, as a training run writes them.
        share: in [0, 1].

    Raises:
        ToPiError: a share outside [0, 1], missing weights, or two different models.
    """
    if not 0 <= share <= 1:
        raise ToPiError(f"--share is {share}; it must be between 0 and 1.")
    models, vaes = zip(load_parts(before), load_parts(after), strict=True)
    if not (same_shapes(models) and same_latents(vaes)):
        raise ToPiError(f"{before} and {after} are not the same model: choose a run from {before}.")
    save_standin(weighted_mean(models, (1 - share, share)), vaes[0], out)
    told = json.loads((after / "recipe.json").read_text())
    told["runs"][-1]["training"] += f"; averaged: {share:g} of this run, the rest from before it"
    (out / "recipe.json").write_text(json.dumps(told, indent=1) + "\n")
    for name in ("curves.csv", "curves.png"):
        if (after / name).exists():
            shutil.copy(after / name, out)


@torch.no_grad()
def weighted_mean(models: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
    """The last of some models of the same shapes, with the mean of all; shares add to one."""
    states = [model.state_dict() for model in models]
    for name, tensor in states[-1].items():
        parts = [share * state[name] for share, state in zip(shares, states, strict=True)]
        tensor.copy_(torch.stack(parts).sum(0))
    return models[-1]


def same_shapes(models: Sequence[nn.Module]) -> bool:
    """Whether all have parameters of the same names and shapes."""
    first, *others = ({n: t.shape for n, t in m.state_dict().items()} for m in models)
    return all(other == first for other in others)


def same_latents(vaes: Sequence[nn.Module]) -> bool:
    """Whether all encode alike, up to the rounding of a moving average of equal weights."""
    if not same_shapes(vaes):
        return False
    first, *others = (vae.state_dict() for vae in vaes)
    return all(torch.allclose(other[n], t) for other in others for n, t in first.items())


def main(argv: list[str] | None = None) -> None:
    """Average two stand-ins."""
    parser = argparse.ArgumentParser(
        prog="python -m topi.bench.standins.average", description=__doc__
    )
    parser.add_argument("after", type=Path, help="folder of the finished run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--before", type=Path, default=weights_folder(), help="default: shipped")
    parser.add_argument("--share", type=float, default=0.5, help="of the run, default: 0.5")
    args = parser.parse_args(argv)
    average(args.before, args.after, args.share, args.out)


if __name__ == "__main__":
    main()
