"""An editor is a pipeline together with how this project calls it: what evaluation sees."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    Flux2KleinPipeline,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from PIL import Image

from topi.bench.data import EditSample
from topi.bench.data.images import size_problem, to_rgb
from topi.bench.data.pictures import Size, side_by_side
from topi.bench.data.sizes import of_area, resized_problem, row_problem
from topi.bench.editors.fingerprint import file_hash, hub_fingerprint
from topi.errors import ToPiError

#: The kinds of editor: the pipeline class of each.
PIPELINES: dict[str, type[DiffusionPipeline]] = {
    "kontext": FluxKontextPipeline,
    "flux2": Flux2KleinPipeline,
    "qwen_edit": QwenImageEditPipeline,
    "qwen_edit_plus": QwenImageEditPlusPipeline,
}
SEVERAL = ("flux2", "qwen_edit_plus")
"""Those that take several references."""
SOURCES = ("hub", "standin", "tiny", "random")
LANCZOS = Image.Resampling.LANCZOS
OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class ModelConfig:
    """The fields of `conf/model/*.yaml`. Sizes in pixels; `steps` are denoising steps."""

    name: str
    kind: str
    source: str
    steps: int
    height: int
    width: int
    hub_id: str | None = None  # a hub id or a local folder
    revision: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    offload: str = "none"
    guidance: float = 2.5  # embedded guidance (Kontext)
    true_cfg: float = 1.0  # classifier-free guidance (Qwen, FLUX.2), with a negative prompt (Qwen)
    negative_prompt: str | None = None
    front_layers: int = 10
    representative_layers: tuple[int, ...] | None = None
    temporal_cache: Mapping[str, Mapping[str, Any]] | None = None  # fits, as `topi fit-cache` finds
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the builder of a tiny pipeline; `weights` of a stand-in, if not named as the model;
    `scaled_down` of random weights."""

    def __post_init__(self) -> None:
        for name, valid in (("kind", PIPELINES), ("source", SOURCES), ("offload", OFFLOADS)):
            if getattr(self, name) not in valid:
                choices = ", ".join(valid)
                raise ToPiError(
                    f"model.{name}={getattr(self, name)!r} is unknown; choose from {choices}"
                )
        if self.steps < 1:
            raise ToPiError(f"model.steps={self.steps} must be at least 1")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ToPiError(
                f"model.dtype={self.dtype!r} is no torch dtype; use bfloat16 or float32"
            )


class Editor:
    """`edit(sample, seed)` runs the real pipeline class with this model's arguments."""

    def __init__(self, config: ModelConfig, pipe: DiffusionPipeline, fingerprint: str):
        self.config, self.pipe, self._fingerprint = config, pipe, fingerprint

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def transformer(self) -> torch.nn.Module:
        return self.pipe.transformer

    def fingerprint(self) -> str:
        """Names the weights: the hash of their content, or the hub id with its commit."""
        return self._fingerprint

    @property
    def device_name(self) -> str:
        """The name of the GPU it runs on, or "cpu"."""
        device = self.pipe._execution_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def calibration_file(self) -> Path | None:
        """Where a calibration that is shipped with the weights lies; None if nothing is shipped.

        A second model of the same weights has one of its own.
        """
        if self.config.source != "standin":
            return None
        from topi.bench.editors.standin import weights_folder

        weights = self.config.options.get("weights", self.name)
        own = "" if weights == self.name else f"_{self.name}"
        return weights_folder(weights) / f"calibration{own}.json"

    def references(self, sample: EditSample) -> list[Image.Image]:
        """The pictures that the pipeline gets: one for Kontext, where several go side by side.

        Raises:
            ToPiError: there are none, one cannot be read, or the pipeline does not take them.
        """
        self.check_sizes(sample.id, [image.size for image in sample.references], sample.size)
        references = [_readable(image, sample.id) for image in sample.references]
        if self.config.kind != "kontext":
            return references
        picture = side_by_side(references)
        # The pipeline brings what it gets to about one megapixel; the same for small models.
        if self._own_size(sample.size):
            return [picture]
        size = of_area(picture.size, self._area)
        return [picture if size == picture.size else picture.resize(size, LANCZOS)]

    @property
    def _area(self) -> int:
        return self.config.height * self.config.width

    def _own_size(self, target: tuple[int, int] | None) -> bool:
        """Does Kontext get a picture as it is? Not where the size of the output is not known."""
        return self.config.source == "hub" or target is not None

    def check_sizes(
        self, sample: str, sizes: Sequence[Size], target: tuple[int, int] | None = None
    ) -> None:
        """Refuse references that the pipeline cannot take.

        Args:
            sample: its id, for the message.
            sizes: (width, height) of its references in pixels.
            target: (height, width) of its output, if known.

        Raises:
            ToPiError: there are none or too many, or one is too small or too narrow.
        """
        if not sizes:
            raise ToPiError(f"sample {sample} has no reference image")
        if self.config.kind not in (*SEVERAL, "kontext") and len(sizes) > 1:
            raise ToPiError(
                f"sample {sample} has {len(sizes)} references but {self.name} takes one; "
                f"use a model of kind {' or '.join(SEVERAL)}"
            )
        if self.config.kind == "flux2":
            problems = list(map(size_problem, sizes))
        elif self.config.kind == "kontext":
            area = None if self._own_size(target) else self._area
            problems = [row_problem(sizes, area, 2 * self.pipe.vae_scale_factor)]
        else:
            several = self.config.kind in SEVERAL
            problems = [resized_problem(size, self.pipe, several) for size in sizes]
        for problem in filter(None, problems):
            raise ToPiError(
                f"sample {sample} has a reference that {self.name} cannot take: {problem}. Replace "
                "it or leave the sample out"
            )

    def arguments(self, sample: EditSample, seed: int) -> dict[str, Any]:
        """The keyword arguments of the pipeline call for this sample."""
        config, references = self.config, self.references(sample)
        height, width = sample.size or (config.height, config.width)
        common = {
            "image": references if config.kind in SEVERAL else references[0],
            "prompt": sample.instruction,
            "height": height,
            "width": width,
            "num_inference_steps": config.steps,
            "generator": torch.Generator().manual_seed(seed),
        }
        if config.kind == "kontext":
            # of another area the pipeline would make its one megapixel
            common |= {"guidance_scale": config.guidance, "max_area": height * width}
            # Kontext wants references of about one megapixel too, and resizes them itself
            return common if config.source == "hub" else common | {"_auto_resize": False}
        if config.kind == "flux2":
            return common | {"guidance_scale": config.true_cfg}
        return common | {
            "true_cfg_scale": config.true_cfg,
            "negative_prompt": config.negative_prompt,
        }

    def edit(self, sample: EditSample, seed: int = 0) -> Image.Image:
        """The edited image [width x height] of `sample`; equal seeds give equal noise."""
        return self.pipe(**self.arguments(sample, seed)).images[0]


class TinyEditor(Editor):
    """A tiny random pipeline has no text encoder: the instruction seeds random embeddings."""

    def __init__(self, config: ModelConfig, pipe: DiffusionPipeline, call: Any):
        super().__init__(config, pipe, f"random-{config.kind}")
        self._call = call

    def arguments(self, sample: EditSample, seed: int) -> dict[str, Any]:
        words = int.from_bytes(hashlib.sha256(sample.instruction.encode()).digest()[:4], "little")
        arguments = super().arguments(sample, seed)
        image = arguments["image"]
        return self._call(
            steps=self.steps,
            seed=words,
            size=(arguments["width"], arguments["height"]),
            references=image if isinstance(image, list) else [image],
            cfg=self.config.true_cfg > 1,
            generator=arguments["generator"],
            output_type="pil",
        )


def load_editor(config: Mapping[str, Any] | ModelConfig) -> Editor:
    """Build the editor that `conf/model/<name>.yaml` describes.

    Raises:
        ToPiError: an unknown field or value, or weights that are not to be had.
    """
    if not isinstance(config, ModelConfig):
        known = {f.name for f in fields(ModelConfig)}
        if unknown := set(config) - known:
            raise ToPiError(f"unknown model fields {sorted(unknown)}; known: {sorted(known)}")
        config = ModelConfig(**config)
    load = {"hub": _load_hub, "standin": _load_standin}
    load |= {"tiny": _build_tiny, "random": _build_random}
    editor = load[config.source](config)
    if config.representative_layers is not None:
        layers = list(config.representative_layers)
        editor.transformer.register_to_config(representative_layers=layers)
    if config.temporal_cache is not None:
        editor.transformer.register_to_config(temporal_cache=config.temporal_cache)
    return editor


def _load_hub(config: ModelConfig) -> Editor:
    cls = PIPELINES[config.kind]
    dtype = getattr(torch, config.dtype)
    try:
        pipe = cls.from_pretrained(config.hub_id, revision=config.revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ToPiError(
            f"the weights of {config.name} ({config.hub_id}) could not be loaded: log in with "
            "`hf auth login` after accepting the model's licence, fetch them once with "
            f"`hf download {config.hub_id}`, or point model.hub_id at a local folder "
            f"({_first_line(error)})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    _place(pipe, config)
    return Editor(config, pipe, hub_fingerprint(config.hub_id, config.revision))


def _load_standin(config: ModelConfig) -> Editor:
    from topi.bench.editors.standin import load_standin, weights_file

    weights = config.options.get("weights", config.name)
    pipe = load_standin(weights, config.kind)
    _place(pipe, config)
    editor = Editor(config, pipe, file_hash(weights_file(weights))[:16])
    fit = pipe.transformer.config.get("temporal_cache")
    if fit and fit["weights"] != editor.fingerprint():  # trained further since
        pipe.transformer.register_to_config(temporal_cache=None)
    return editor


def _build_tiny(config: ModelConfig) -> Editor:
    from topi.models import tiny

    build = {
        "kontext": tiny.tiny_flux,
        "flux2": tiny.tiny_flux2,
        "qwen_edit": tiny.tiny_qwen,
        "qwen_edit_plus": tiny.tiny_qwen_plus,
    }[config.kind]
    pipe, call = build(dtype=getattr(torch, config.dtype), **config.options)
    _place(pipe, config)
    return TinyEditor(config, pipe, call)


def _build_random(config: ModelConfig) -> Editor:
    from topi.bench.editors.random import PUBLISHED, random_pipeline

    if config.kind not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise ToPiError(f"Random weights are made for {known}, not for {config.kind} yet.")
    if config.offload != "none":
        raise ToPiError("Random weights are made on the device; use model.offload=none.")
    pipe, call = random_pipeline(
        PIPELINES[config.kind],
        config.kind,
        _device(config),
        getattr(torch, config.dtype),
        area=config.height * config.width,
        **config.options,
    )
    return TinyEditor(config, pipe, call)


def _device(config: ModelConfig) -> torch.device:
    available = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(available if config.device == "auto" else config.device)


def _place(pipe: DiffusionPipeline, config: ModelConfig) -> None:
    """Move the pipeline to its device, whole or offloaded."""
    device = _device(config)
    if config.offload != "none" and device.type == "cpu":
        raise ToPiError(f"model.offload={config.offload} needs a GPU; use model.offload=none")
    if config.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif config.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def _readable(image: Image.Image, sample: str) -> Image.Image:
    try:
        return to_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ToPiError(
            f"the reference image of sample {sample} cannot be read: replace it or leave the "
            f"sample out ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
