"""The recipe and the learning curves that a finished run leaves beside its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from topi.bench.data.mini_edit import label
from topi.bench.standins.flow import NOISE_MEAN, NOISE_SPREAD
from topi.bench.standins.training_config import Phase, TrainingConfig


def recipe(config: TrainingConfig, transformer: nn.Module, begun: Mapping[str, Any]) -> dict:
    """The content of recipe.json, from which the model card describes the training.

    Args:
        begun: what `topi.bench.standins.origin.begin` returned.
    """
    return {
        "architecture": architecture(transformer),
        "enlarge": config.data.enlarge,
        "references": 1 + (config.data.beside > 0.5),  # that it is evaluated with
        "latents": config.model.latents,
        "prompt_dropout": config.model.prompt_dropout,
        "runs": runs(config, Path(config.out), begun),
    }


def runs(config: TrainingConfig, out: Path, begun: Mapping[str, Any]) -> list[dict[str, Any]]:
    """This run, after those whose weights it started from.

    Args:
        begun: as of `recipe`.
    """
    earlier = out / "start" / "recipe.json"
    earlier = json.loads(earlier.read_text())["runs"] if earlier.exists() else []
    done = [
        json.loads((out / f"phase-{k}/done.json").read_text()) for k in range(len(config.phases))
    ]
    parts = [
        described(phase, result["steps"]) for phase, result in zip(config.phases, done, strict=True)
    ]
    minutes = sum(phase["minutes"] for phase in done)
    waiting = sum(phase["waiting"] * phase["minutes"] for phase in done) / max(minutes, 1e-9)
    given = [o for o in config.overrides if not o.startswith(("out=", "hardware=", "ship="))]
    run = {
        "training": f"from {config.start}, Muon: {'; '.join(parts)}",
        "command": " ".join(["python -m topi.bench.standins", *given]),
        "cost": f"{minutes:.0f} minutes on {config.hardware}, {waiting:.1%} of them spent waiting "
        "for data",
        "seed": config.seed,
        "start": begun["start"],
        "precision": begun["precision"],
        "commits": begun["commits"],
        "python": begun["python"],
        "versions": begun["versions"],
    }
    return [*earlier, run]


def described(phase: Phase, steps: int) -> str:
    """A finished phase in a few words."""
    sizes = sorted({label(tuple(size[:2]), tuple(size[2:] or size[:2])) for size in phase.sizes})
    rate = f"learning rate {phase.schedule.lr:g}"
    if phase.lr_end is not None:
        rate += f" to {phase.lr_end:g}"
    noise = (phase.noise_mean, phase.noise_spread)
    if noise != (NOISE_MEAN, NOISE_SPREAD):
        rate += f", noise levels sigmoid(N({noise[0]:g}, {noise[1]:g}))"
    return f"{steps} steps of {phase.batch} at {', '.join(sizes)} px, {rate}"


def architecture(transformer: nn.Module) -> str:
    """The transformer in one line."""
    config = transformer.config
    if "num_single_layers" in config:
        blocks = f"{config.num_layers} dual-stream and {config.num_single_layers} single-stream"
        extra = ", guidance embedding (trained at one value)"
    else:
        blocks, extra = f"{config.num_layers} dual-stream", ""
    return (
        f"{blocks} blocks, {config.num_attention_heads} heads of {config.attention_head_dim}, "
        f"rotary axes {tuple(config.axes_dims_rope)}{extra}"
    )


def curves(config: TrainingConfig, out: Path) -> pd.DataFrame:
    """The logged values in order: run, phase, step, lr, v_mse and the PSNR of each category.

    A killed phase logs some steps twice; the later ones count.
    """
    earlier = out / "start" / "curves.csv"
    parts = [pd.read_csv(earlier)] if earlier.exists() else []
    run = 1 + (int(parts[0]["run"].max()) if parts else 0)
    for phase in range(len(config.phases)):
        logs = (out / "log" / f"phase-{phase}").glob("*/metrics.csv")
        logs = sorted(logs, key=lambda log: int(log.parent.name))
        logged = pd.concat([pd.read_csv(log) for log in logs])
        logged = logged.groupby("step", as_index=False).last()  # of each column, if it is there
        logged.insert(0, "run", run)
        logged.insert(1, "phase", phase)
        parts.append(logged.drop(columns="epoch"))
    return pd.concat(parts, ignore_index=True)
