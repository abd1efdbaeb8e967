"""Where the stand-ins' weights lie, and how they are written and loaded."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    QwenImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topi.bench.editors.standin import kontext_standin as kontext
from topi.bench.editors.standin import qwen_standin as qwen
from topi.bench.editors.standin.latents import BlockTransformVAE, ConvVAE
from topi.errors import ToPiError

LATENTS: dict[str, type[BlockTransformVAE] | type[ConvVAE]] = {
    "block": BlockTransformVAE,
    "conv": ConvVAE,
}
#: What was measured of the weights, beside diffusers' fields of a config.
MEASURED = ("representative_layers", "temporal_cache")


@dataclass(frozen=True)
class Family:
    """An architecture: how to build it, call it and put it into its pipeline."""

    transformer: type[ModelMixin]
    new: Callable[..., ModelMixin]
    velocity: Callable[..., Tensor]
    pipeline: Callable[..., DiffusionPipeline]
    reference_size: Callable[[tuple[int, int]], tuple[int, int]]
    embedder: str  # name of the token embedder


FAMILIES = {
    "kontext": Family(
        FluxTransformer2DModel,
        kontext.new_kontext_transformer,
        kontext.kontext_velocity,
        kontext.kontext_pipeline,
        kontext.reference_size,
        "x_embedder",
    ),
    "qwen_edit": Family(
        QwenImageTransformer2DModel,
        qwen.new_qwen_transformer,
        qwen.qwen_velocity,
        qwen.qwen_pipeline,
        qwen.reference_size,
        "img_in",
    ),
}


def weights_folder(name: str = "kontext_standin") -> Path:
    """Where a stand-in's shipped weights lie: config.json, model.safetensors, model card."""
    return Path(str(files("topi.bench.editors"))) / "weights" / name


def weights_file(name: str = "kontext_standin") -> Path:
    """The weights themselves, fp16 safetensors."""
    return weights_folder(name) / "model.safetensors"


def save_standin(transformer: nn.Module, vae: nn.Module, folder: Path) -> None:
    """Write fp16 weights and the transformer's config; the VAE's go along in fp32.

    What was measured of the transformer's former weights stays behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{n}": t.half() for n, t in transformer.state_dict().items()}
    tensors |= {f"vae.{n}": t.float() for n, t in vae.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    transformer.save_config(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    own = {name: value for name, value in config.items() if name not in MEASURED}
    file.write_text(json.dumps(own, indent=2) + "\n")
    vae.save_config(folder / "vae")


def load_parts(folder: Path) -> tuple[nn.Module, nn.Module]:
    """(transformer, VAE) that `save_standin` wrote, in fp32 on the CPU.

    Raises:
        ToPiError: the weights are not there.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise ToPiError(
            f"the stand-in weights {weights} are missing: reinstall the package from a full "
            f"checkout, or train them with `python -m topi.bench.standins model={folder.name}`"
        )
    tensors = {n: t.float() for n, t in load_file(weights).items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    config = json.loads((folder / "config.json").read_text())
    measured = {name: config.pop(name) for name in MEASURED if config.get(name)}
    cls = next(
        f.transformer for f in FAMILIES.values() if f.transformer.__name__ == config["_class_name"]
    )
    transformer = cls.from_config(config)
    transformer.register_to_config(**measured)
    transformer.load_state_dict(part("transformer."))
    vae_config = json.loads((folder / "vae" / "config.json").read_text())
    vae_class = next(c for c in LATENTS.values() if c.__name__ == vae_config["_class_name"])
    vae = vae_class.from_config(vae_config)
    vae.load_state_dict(part("vae."))
    return transformer.requires_grad_(False), vae.requires_grad_(False)


def load_standin(name: str, kind: str = "kontext") -> DiffusionPipeline:
    """A shipped stand-in in its stock pipeline, fp32, on the CPU.

    Args:
        kind: kontext, qwen_edit or qwen_edit_plus, as in `conf/model`.

    Raises:
        ToPiError: the weights file is not in the installed package.
    """
    transformer, vae = load_parts(weights_folder(name))
    if kind == "kontext":
        return kontext.kontext_pipeline(transformer, vae)
    return qwen.qwen_pipeline(transformer, vae, several=kind == "qwen_edit_plus")
