"""Weights between those before and after a run: `python -m topi.training.average AFTER OUT`.

Interpolating between a model and its fine-tuned self often edits better than either (WiSE-FT,
arXiv 2109.01903). Choose the share on the calibration split.
"""

import argparse
import json
import shutil
from pathlib import Path

from topi.errors import ToPiError
from topi.models.standin.weights import load_parts, save_standin, weights_folder


def average(before: Path, after: Path, share: float, out: Path) -> None:
    """Write (1 - share) of the weights `before` a run and share of those `after` it.

    The latents must be the same. Recipe and curves are those of the run, and say that it was
    averaged; `topi.training start=OUT` goes on from there.

    Args:
        before, after, out: folders with a stand-in, as a training run writes them.
        share: in [0, 1].

    Raises:
        ToPiError: a share outside [0, 1], missing weights, or two different models.
    """
    if not 0 <= share <= 1:
        raise ToPiError(f"--share is {share}; it must be between 0 and 1.")
    (old, vae), (new, same_vae) = load_parts(before), load_parts(after)
    old_tensors, new_tensors = old.state_dict(), new.state_dict()
    shapes = [{n: t.shape for n, t in tensors.items()} for tensors in (old_tensors, new_tensors)]
    latents = [{n: t.tolist() for n, t in part.state_dict().items()} for part in (vae, same_vae)]
    if shapes[0] != shapes[1] or latents[0] != latents[1]:
        raise ToPiError(f"{before} and {after} are not the same model: choose a run from {before}.")
    new.load_state_dict({n: t.lerp(new_tensors[n], share) for n, t in old_tensors.items()})
    save_standin(new, vae, out)
    told = json.loads((after / "recipe.json").read_text())
    told["runs"][-1]["training"] += f"; averaged: {share:g} of this run, the rest from before it"
    (out / "recipe.json").write_text(json.dumps(told, indent=1) + "\n")
    for name in ("curves.csv", "curves.png"):
        if (after / name).exists():
            shutil.copy(after / name, out)


def main(argv: list[str] | None = None) -> None:
    """Average two stand-ins."""
    parser = argparse.ArgumentParser(prog="python -m topi.training.average", description=__doc__)
    parser.add_argument("after", type=Path, help="folder of the finished run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--before", type=Path, default=weights_folder(), help="default: shipped")
    parser.add_argument("--share", type=float, default=0.5, help="of the run, default: 0.5")
    args = parser.parse_args(argv)
    average(args.before, args.after, args.share, args.out)


if __name__ == "__main__":
    main()
