"""What the engine must know of an architecture: where tokens, rotary rows and modulation sit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from topi.errors import ToPiError

Grid = tuple[int, int]
Scope = str  # "attention" | "mlp" | "both" | "block"
Untyped = Any
"""A module of diffusers, whose submodules and configuration no type checker knows."""


@dataclass(frozen=True)
class Layout:
    """The joint attention sequence `[text | target | reference 1 | reference 2 | ...]` of one call.

    Args:
        n_text: text tokens.
        target_grid: rows and columns of the target tokens, row-major.
        reference_grids: the same for each reference image, in sequence order.
    """

    n_text: int
    target_grid: Grid
    reference_grids: tuple[Grid, ...]

    @cached_property
    def n_target(self) -> int:
        """|G|."""
        return math.prod(self.target_grid)

    @cached_property
    def n_reference(self) -> int:
        """|C|, over all reference images."""
        return sum(math.prod(grid) for grid in self.reference_grids)

    @property
    def n_image(self) -> int:
        """Length of the image stream `[target | references]`."""
        return self.n_target + self.n_reference

    @property
    def targets(self) -> slice:
        """Target rows of the joint sequence."""
        return slice(self.n_text, self.n_text + self.n_target)

    @property
    def references(self) -> slice:
        """Reference rows of the joint sequence."""
        return slice(self.targets.stop, self.targets.stop + self.n_reference)

    def region(self, reference_only: bool) -> tuple[int, tuple[Grid, ...]]:
        """The first row in the image stream and the grids: of all images, or of the references."""
        if reference_only:
            return self.n_target, self.reference_grids
        return 0, (self.target_grid, *self.reference_grids)

    @cached_property
    def reference_slices(self) -> tuple[slice, ...]:
        """Each reference image's rows, counted within the reference tokens."""
        slices, start = [], 0
        for grid in self.reference_grids:
            slices.append(slice(start, start + math.prod(grid)))
            start += math.prod(grid)
        return tuple(slices)


@dataclass(frozen=True)
class MergePoints:
    """The submodules around which one block can be run on merged image tokens.

    `attention` and `mlp` receive normed states of the image stream. Where `norm` and `projection`
    are given, they run in parallel on states with the text rows first, and the whole block can run
    merged: `norm` yields `(states, gate)`, `projection` closes the residual branch. Without `mlp`
    all that is in `attention`, whose states have the text rows first.
    """

    attention: nn.Module
    mlp: nn.Module | None
    norm: nn.Module | None = None
    projection: nn.Module | None = None

    @property
    def joint(self) -> bool:
        """True if attention and MLP get the text rows too."""
        return self.norm is not None or self.fused

    @property
    def fused(self) -> bool:
        """True if attention and MLP are one module."""
        return self.mlp is None

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Where this block can be merged."""
        if self.fused:
            return ("block",)
        return ("attention", "mlp", "block" if self.joint else "both")


@dataclass(frozen=True)
class ModelFacts:
    """What a method may know of the model it is attached to; layer numbers are global and 0-based.

    Args:
        name: the transformer class.
        stacks: blocks per stack, e.g. `(19, 38)` for Flux (dual, single) and `(60,)` for Qwen.
        scopes: for each layer, where merging is possible.
        representative_layers: the layers that stand for the model's use of its references (Eq. 5),
            if known.
        temporal_cache: name of a temporal cache -> its parameters that were fitted on this model.
    """

    name: str
    stacks: tuple[int, ...]
    scopes: tuple[tuple[Scope, ...], ...]
    representative_layers: tuple[int, ...] | None
    temporal_cache: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return sum(self.stacks)


class Adapter(ABC):
    """One transformer instance as the engine sees it. Subclass once per transformer class."""

    transformer_class: ClassVar[str]
    published_layers: ClassVar[Mapping[tuple[int, ...], tuple[int, ...]]] = {}
    published_cache: ClassVar[Mapping[tuple[int, ...], Mapping[str, Mapping[str, Any]]]] = {}

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer: Untyped = transformer

    @abstractmethod
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The block lists in the order they run."""

    @abstractmethod
    def layout(self, kwargs: Mapping[str, Any], caller: Any = None) -> Layout:
        """Read the layout from the keyword arguments of a transformer call.

        Args:
            caller: the pipeline call it is part of, in which no image changes its place; None in a
                loop of one's own.
        """

    @abstractmethod
    def inputs(self, layout: Layout, batch: int, device: torch.device) -> dict[str, Any]:
        """Keyword arguments of a transformer call with this layout; all content is zero."""

    @abstractmethod
    def positions(self, kwargs: Mapping[str, Any]) -> Any:
        """What carries the image positions; a pipeline makes a new object for each of its calls."""

    @abstractmethod
    def gather_rope(self, rope: Any, rows: Tensor, n_text: int) -> Any:
        """Keep the rotary rows of all text tokens and of the image-stream `rows` (Eq. 12).

        Args:
            rows: [n], or [B, n] where each sample has its own; the rope then has a batch axis, too.
        """

    @abstractmethod
    def merge_points(self, layer: int) -> MergePoints:
        """The submodules of block `layer` where tokens can be merged."""

    @abstractmethod
    def normed_states(self, layer: int, kwargs: Mapping[str, Any]) -> Tensor:
        """Image states [B, N, D] as the attention of block `layer` will get them.

        Normed and modulated, from the keyword arguments of the block, for all image tokens.
        """

    @abstractmethod
    def rotated(self, key: Tensor, rope: Any, rows: slice, n_text: int) -> Tensor:
        """Rotate key [B, n, H, D] of the image-stream `rows` as the attention does."""

    def key_value(
        self, layer: int, kwargs: Mapping[str, Any], rows: slice
    ) -> tuple[Tensor, Tensor]:
        """Key and value [B, n, H, D], after norm and RoPE, that block `layer` has of image `rows`.

        Args:
            kwargs: the keyword arguments of the block.
        """
        attention, text = self.blocks[layer].attn, kwargs["encoder_hidden_states"]
        own = self.gather_extras({**kwargs, "encoder_hidden_states": text[:, :0]}, rows)
        normed = self.normed_states(
            layer, own | {"hidden_states": kwargs["hidden_states"][:, rows]}
        )
        both = self.projected(layer, normed)
        key, value = (each.unflatten(-1, (attention.heads, -1)) for each in both)
        rope = kwargs["image_rotary_emb"]
        return self.rotated(attention.norm_k(key), rope, rows, text.shape[1]), value

    def projected(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [B, n, H D] of normed states [B, n, D], before norm and RoPE."""
        attention = self.blocks[layer].attn
        return attention.to_k(normed), attention.to_v(normed)  # which fusing leaves in place

    def separated(self, layer: int, kwargs: dict[str, Any], n_text: int) -> dict[str, Any]:
        """The keyword arguments of block `layer` with text and image states apart."""
        return kwargs

    def joined(self, layer: int, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Text and image states as block `layer` returns them."""
        return text, image

    def with_rows(self, kwargs: dict[str, Any], rows: slice, n_text: int) -> dict[str, Any]:
        """The keyword arguments of a block for some `rows` of its image stream, and all text."""
        kwargs = self.gather_extras(dict(kwargs), rows)
        kwargs["hidden_states"] = kwargs["hidden_states"][:, rows]
        kwargs["image_rotary_emb"] = self.sliced_rope(kwargs["image_rotary_emb"], rows, n_text)
        return kwargs

    @abstractmethod
    def sliced_rope(self, rope: Any, rows: slice, n_text: int) -> Any:
        """`gather_rope` for a run of rows from the first on."""

    def gather_extras(self, kwargs: dict[str, Any], rows: Tensor | slice) -> dict[str, Any]:
        """Gather whatever else a block receives per image token; by default there is nothing."""
        return kwargs

    def known_points(self, layer: int) -> MergePoints:
        """`merge_points`.

        Raises:
            ToPiError: the block is of another kind.
        """
        try:
            return self.merge_points(layer)
        except AttributeError as error:
            kind = type(self.blocks[layer]).__name__
            raise ToPiError(
                f"Layer {layer} of this {type(self.transformer).__name__} is a {kind}, which "
                f"methods do not know ({error}); use diffusers' own blocks."
            ) from error

    @cached_property
    def blocks(self) -> tuple[Untyped, ...]:
        """All blocks in the order they run; the index is the layer number."""
        return tuple(block for stack in self.stacks() for block in stack)

    @cached_property
    def facts(self) -> ModelFacts:
        """What methods may know."""
        stacks = tuple(len(stack) for stack in self.stacks())
        named = self.transformer.config.get("representative_layers")
        layers = named or self.published_layers.get(stacks)
        cache = self.transformer.config.get("temporal_cache")
        return ModelFacts(
            name=type(self.transformer).__name__,
            stacks=stacks,
            scopes=tuple(self.known_points(layer).scopes for layer in range(sum(stacks))),
            representative_layers=tuple(layers) if layers else None,
            temporal_cache=cache or self.published_cache.get(stacks, {}),
        )


ADAPTERS: dict[str, type[Adapter]] = {}


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator: make an adapter known under its `transformer_class`."""
    ADAPTERS[adapter.transformer_class] = adapter
    return adapter


def adapter_for(model: Any) -> Adapter:
    """The adapter of a pipeline or of its transformer.

    Raises:
        ToPiError: no adapter is registered for the transformer's class, or it is wrapped by
            torch.compile.
    """
    transformer = getattr(model, "transformer", model)
    if is_compiled_whole(transformer):
        raise ToPiError(
            "The transformer is compiled as a whole, so that no method could act on a call; load "
            "it without torch.compile and use `topi.compile(pipe)`."
        )
    for cls in type(transformer).__mro__:
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__](transformer)
    raise ToPiError(
        f"{type(transformer).__name__} is not supported; pass a pipeline whose transformer is one "
        f"of: {', '.join(sorted(ADAPTERS))}, or that transformer."
    )


def is_compiled_whole(transformer: Any) -> bool:
    """True if it is what `torch.compile(transformer)` returns."""
    return "_orig_mod" in getattr(transformer, "_modules", {})


def version(tensor: Tensor) -> int | None:
    """How often the tensor has been written to; None: torch does not count."""
    return None if tensor.is_inference() else tensor._version


def with_text_rows(rows: Tensor, n_text: int) -> Tensor:
    """Rows of `[text | image]`: all text, and the image-stream `rows` [..., n] behind it."""
    text = torch.arange(n_text, device=rows.device).expand(*rows.shape[:-1], -1)
    return torch.cat([text, rows + n_text], dim=-1)
