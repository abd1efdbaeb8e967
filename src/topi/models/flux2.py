"""FLUX.2 (dev and klein): as FLUX.1, with modulation shared by all blocks and fused single blocks.

`Flux2KleinKVPipeline` is refused: it keeps the references' keys and values itself, so that there is
nothing to prune.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar
from weakref import ref

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux2 import Flux2Modulation
from torch import Tensor, nn

from topi.errors import ToPiError
from topi.models.adapter import Grid, Layout, MergePoints, register
from topi.models.flux import FluxAdapter

AXES = 4
"""Of a position: image, row, column, and the place in the text."""


@register
class Flux2Adapter(FluxAdapter):
    """`Flux2Transformer2DModel`: `img_ids` [B, N, 4], image 0 the target, then 10, 20, ..."""

    transformer_class = "Flux2Transformer2DModel"
    published_layers: ClassVar = {}
    published_cache: ClassVar = {}

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer)
        self._caller: Callable[[], Any] = lambda: None
        self._of_texts: list[tuple[Tensor, torch.Size, tuple[Grid, ...]]] = []

    def positions(self, kwargs: Mapping[str, Any]) -> Tensor:
        """`txt_ids`: the pipelines put `img_ids` together anew at every step."""
        return kwargs["txt_ids"]

    def layout(self, kwargs: Mapping[str, Any], caller: Any = None) -> Layout:
        """From `img_ids`, read once for every `txt_ids` of a pipeline call.

        Raises:
            ToPiError: the pipeline is `Flux2KleinKVPipeline`.
        """
        if kwargs.get("kv_cache_mode") is not None:
            raise ToPiError(
                "Flux2KleinKVPipeline keeps the references' keys and values from its first step on "
                "and computes no reference token after it, so that there is nothing left to prune; "
                "use Flux2KleinPipeline."
            )
        return super().layout(kwargs, caller)

    def _grids(self, kwargs: Mapping[str, Any], caller: Any) -> tuple[Grid, ...]:
        if caller is None:  # a loop of one's own may keep its `txt_ids` for all pictures
            return super()._grids(kwargs, caller)
        if self._caller() is not caller:
            self._caller, self._of_texts = ref(caller), []
        text, shape = kwargs["txt_ids"], kwargs["img_ids"].shape
        for known, of_shape, grids in self._of_texts:
            if known is text and of_shape == shape:
                return grids
        grids = super()._grids(kwargs, caller)
        self._of_texts = [*self._of_texts[-1:], (text, shape, grids)]  # of both branches
        return grids

    def inputs(self, layout: Layout, batch: int, device: torch.device) -> dict[str, Any]:
        """Of a pipeline call; `img_ids` holds each token's image, row, column and 0."""
        config = self.transformer.config
        zeros = partial(torch.zeros, device=device)
        grids = (layout.target_grid, *layout.reference_grids)
        inputs = {
            "hidden_states": zeros(batch, layout.n_image, config.in_channels),
            "encoder_hidden_states": zeros(batch, layout.n_text, config.joint_attention_dim),
            "timestep": zeros(batch),
            "img_ids": torch.cat([image_ids(g, 10 * i) for i, g in enumerate(grids)]).to(device),
            "txt_ids": zeros(layout.n_text, AXES),
        }
        return inputs | ({"guidance": zeros(batch)} if config.guidance_embeds else {})

    def separated(self, layer: int, kwargs: dict[str, Any], n_text: int) -> dict[str, Any]:
        """A single-stream block gets `[text | image]` and can be given the two apart."""
        if self._dual(layer):
            return kwargs
        text, image = kwargs["hidden_states"].tensor_split([n_text], dim=1)
        apart = {"encoder_hidden_states": text, "hidden_states": image}
        return kwargs | apart | {"split_hidden_states": True}

    def joined(self, layer: int, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """A single-stream block returns `[text | image]`."""
        return (text, image) if self._dual(layer) else torch.cat([text, image], dim=1)

    def normed_states(self, layer: int, kwargs: Mapping[str, Any]) -> Tensor:
        """By the block's first norm and the modulation that all blocks of its kind share."""
        block, states = self.blocks[layer], kwargs["hidden_states"]
        if self._dual(layer):
            norm, (shift, scale, _) = (
                block.norm1,
                Flux2Modulation.split(kwargs["temb_mod_img"], 2)[0],
            )
        else:
            norm, (shift, scale, _) = block.norm, Flux2Modulation.split(kwargs["temb_mod"], 1)[0]
        return (1 + scale) * norm(states) + shift

    def projected(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor]:
        """In a single-stream block a part of the one projection there is."""
        attention = self.blocks[layer].attn
        if self._dual(layer):
            return super().projected(layer, normed)
        width, projection = attention.inner_dim, attention.to_qkv_mlp_proj
        part = slice(width, 3 * width)
        bias = None if projection.bias is None else projection.bias[part]
        key, value = F.linear(normed, projection.weight[part], bias).chunk(2, dim=-1)
        return key, value

    def merge_points(self, layer: int) -> MergePoints:
        """In a single-stream block attention and MLP are one module."""
        block = self.blocks[layer]
        return MergePoints(block.attn, block.ff if self._dual(layer) else None)

    def _dual(self, layer: int) -> bool:
        return layer < len(self.transformer.transformer_blocks)


def image_ids(grid: Grid, image: int) -> Tensor:
    """[rows columns, 4] of one image."""
    rows, columns = (torch.arange(n) for n in grid)
    return torch.cartesian_prod(torch.tensor([image]), rows, columns, torch.arange(1)).float()
