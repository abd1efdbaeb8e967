"""Train the Kontext stand-in: `python -m topi.training --phases 64:60 96:30 128:60`."""

import argparse
import json
from pathlib import Path

import lightning as L
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from topi.data.mini_edit import draw_pair
from topi.models.standin import (
    BlockTransformVAE,
    load_kontext_standin,
    save_kontext_standin,
    weights_folder,
)
from topi.models.text import PromptCache
from topi.training.kontext import KontextTraining, to_signed, train_phase


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m topi.training", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/training/kontext_standin"))
    parser.add_argument(
        "--phases",
        nargs="+",
        default=["64:60", "96:30", "128:60"],
        metavar="SIZE:MINUTES",
        help="image sizes in pixels, in order, and the minutes to train at each",
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu or auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw samples")
    parser.add_argument("--validate-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--continue-shipped",
        action="store_true",
        help="start from the weights in the package instead of from scratch",
    )
    parser.add_argument(
        "--hardware", default="an unnamed machine", help="what the model card calls this machine"
    )
    parser.add_argument(
        "--ship", action="store_true", help="write the result to the package's weights folder"
    )
    return parser.parse_args(argv)


def recipe(args: argparse.Namespace, sizes: list[int]) -> dict[str, str]:
    """What the model card tells of one training run."""
    done = [json.loads((args.out / f"phase-{size}" / "done.json").read_text()) for size in sizes]
    parts = [f"{d['steps']} steps at {size} px" for d, size in zip(done, sizes, strict=True)]
    minutes = sum(d["minutes"] for d in done)
    started = "the shipped weights" if args.continue_shipped else "scratch"
    return {
        "training": f"from {started}, {', '.join(parts)}; batches of {args.batch}, learning rate "
        f"{args.lr:g}, 0.8 times that after the first phase, linear to zero in the last",
        "command": f"python -m topi.training --phases {' '.join(args.phases)} --lr {args.lr:g}"
        f"{' --continue-shipped' if args.continue_shipped else ''}",
        "cost": f"{minutes:.0f} minutes on {args.hardware}",
    }


def architecture(transformer: FluxTransformer2DModel) -> str:
    """The transformer in one line."""
    config = transformer.config
    return (
        f"{config.num_layers} dual-stream and {config.num_single_layers} single-stream blocks, "
        f"{config.num_attention_heads} heads of {config.attention_head_dim}, rotary axes "
        f"{tuple(config.axes_dims_rope)}, guidance embedding (trained at one value)"
    )


def shipped_state() -> dict[str, torch.Tensor]:
    """The package's weights, named as in the training module."""
    pipe = load_kontext_standin()
    parts = {"transformer": pipe.transformer, "vae": pipe.vae}
    return {f"{name}.{n}": t for name, part in parts.items() for n, t in part.state_dict().items()}


def fitted_vae() -> BlockTransformVAE:
    """The block transform with its scale set on 800 training pairs at 64 px."""
    pairs = [draw_pair("train", k, 64) for k in range(800)]
    images = torch.stack([torch.from_numpy(image) for pair in pairs for image in pair[:2]])
    return BlockTransformVAE().fit(to_signed(images))


def main(argv: list[str] | None = None) -> None:
    """Train the phases one after the other; finished ones are not trained again."""
    args = parse(argv)
    L.seed_everything(args.seed)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    module = KontextTraining(fitted_vae(), PromptCache(), args.out, not args.no_compile)
    before = []  # recipes of the runs that this one continues
    if args.continue_shipped:
        module.load_state_dict(shipped_state())
        before = json.loads((weights_folder() / "recipe.json").read_text())["runs"]
    phases = [(int(s), float(m)) for s, m in (p.split(":") for p in args.phases)]
    for k, (size, minutes) in enumerate(phases):
        done = args.out / f"phase-{size}" / "averaged.safetensors"
        if done.exists():
            print(f"{size} px is done ({done}); going on from it")
            module.load_state_dict(load_file(done))
            continue
        # The last phase decays to zero, which is where most of the sharpness comes from.
        first = args.lr if k == 0 else 0.8 * args.lr
        lr = (first, 0.02 * args.lr if k == len(phases) - 1 else first)
        steps = train_phase(
            module,
            size,
            minutes,
            lr,
            args.batch,
            args.validate_every,
            args.accelerator,
            args.workers,
            args.checkpoint_every,
        )
        told = {"steps": steps, "minutes": module.elapsed / 60}
        (done.parent / "done.json").write_text(json.dumps(told) + "\n")
        # After the fit the module holds the averaged weights.
        save_file({n: t.contiguous() for n, t in module.state_dict().items()}, done)
    if args.ship:
        save_kontext_standin(module.transformer, module.vae)
        run = recipe(args, [size for size, _ in phases])
        told = {"architecture": architecture(module.transformer), "runs": [*before, run]}
        (weights_folder() / "recipe.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
