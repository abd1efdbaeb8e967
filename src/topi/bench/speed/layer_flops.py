"""Table 6 corrected: the FLOPs of one layer of the real models, counted on the meta device.

`python -m topi.bench.speed.layer_flops` writes `experiments/table6/counted.json`. The paper
computes with d = 4096 and, for Qwen, an MLP six times as wide; the real configurations say 3072
and four.
"""

import argparse
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from topi.engine import CallRecord
from topi.engine.flops import Replay
from topi.models import Layout, adapter_for

TEXT, GRID, KEPT = 512, (64, 64), 2048
"""Appendix F.3: 512 prompt tokens, |G| = |C| = 4096, half of C dropped."""
TEXT_MODULES = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "txt_mlp")
LINEAR = (".mm", ".addmm")
MODULATION = ("norm", "norm1", "norm1_context", "img_mod", "txt_mod")


def block_flops(transformer: nn.Module, block: str, record: CallRecord) -> dict[str, int]:
    """FLOPs of one block in a call: `attention, image, text, modulation`.

    Args:
        transformer: on the meta device.
        block: its name, `transformer_blocks.0`.
        record: the shapes of the call.
    """
    adapter = adapter_for(transformer)
    inputs = adapter.inputs(record.layout, record.batch, torch.device("meta"))
    counter = FlopCounterMode(display=False)
    with Replay(adapter, record).attached(), torch.no_grad(), counter:
        transformer(**inputs)
    prefix = f"{type(transformer).__name__}.{block}"
    per_module = counter.get_flop_counts()
    whole = per_module[prefix]
    attention = sum(flops for op, flops in whole.items() if not str(op).endswith(LINEAR))

    def under(names: tuple[str, ...]) -> int:
        outer = [f"{prefix}.{name}" for name in names] + [f"{prefix}.attn.{name}" for name in names]
        return sum(sum(per_module[name].values()) for name in outer if name in per_module)

    text, modulation = under(TEXT_MODULES), under(MODULATION)
    image = sum(whole.values()) - attention - text - modulation
    return {"attention": attention, "image": image, "text": text, "modulation": modulation}


def count() -> dict[str, dict[str, dict[str, int]]]:
    """Architecture -> `baseline` and `topi` -> component -> FLOPs of one layer of one call."""
    layout = Layout(TEXT, GRID, (GRID,))
    full = CallRecord(0, "cond", layout, 1)
    half = replace(full, front_layers=0, kept=tuple(range(KEPT)))
    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
        qwen = QwenImageTransformer2DModel(num_layers=1)
    blocks = {
        "Flux Joint": (flux, "transformer_blocks.0"),
        "Flux Single": (flux, "single_transformer_blocks.0"),
        "Qwen-Image-Edit": (qwen, "transformer_blocks.0"),
    }
    return {
        name: {
            "baseline": block_flops(*where, full),
            "topi": block_flops(*where, half),
        }
        for name, where in blocks.items()
    }


def main() -> None:
    """Write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[4] / "experiments" / "table6" / "counted.json"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    about = {"diffusers": version("diffusers"), "torch": version("torch"), "layers": count()}
    out.write_text(json.dumps(about, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
