"""FLUX.1 Kontext: dual-stream blocks, then single-stream blocks; references follow the target."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from topi.errors import ToPiError
from topi.models.adapter import (
    Adapter,
    Grid,
    Layout,
    MergePoints,
    register,
    version,
    with_text_rows,
)
from topi.models.rope import per_sample


@register
class FluxAdapter(Adapter):
    """`FluxTransformer2DModel`: `img_ids` [N, 3] are (image, row, column), image 0 the target."""

    transformer_class = "FluxTransformer2DModel"
    published_layers: ClassVar = {(19, 38): (13, 18, 31)}  # appendix C.3
    published_cache: ClassVar = {
        (19, 38): {
            # A community fit for Kontext over target and reference tokens, as in nunchaku (pull
            # request 618) and ComfyUI-TeaCache; its polynomial turns negative beyond 0.24.
            "teacache": {
                "coefficients": (
                    -1046.55119,
                    312.563399,
                    -16.9500694,
                    0.410995971,
                    0.0374537863,
                ),
                "ceiling": 0.2,
            },
            # MagCache's own calibration for Kontext at 28 steps, of which it always computes one
            "magcache": {
                "ratios": (
                    *(1.0, 1.19531, 1.07812, 1.02344, 1.03125, 1.00781, 1.02344),
                    *(1.01562, 1.01562, 1.0, 1.01562, 1.0, 1.00781, 1.0),
                    *(1.00781, 1.0, 1.00781, 0.99609, 1.01562, 0.99219, 1.0),
                    *(0.99219, 0.98438, 0.99609, 0.96484, 0.96094, 0.9375, 0.93359),
                ),
                "always": (11,),
            },
        }
    }

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer)
        self._read: tuple[Tensor | None, int | None, tuple[Grid, ...]] = (None, None, ())

    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The dual-stream blocks, then the single-stream blocks."""
        return self.transformer.transformer_blocks, self.transformer.single_transformer_blocks

    def positions(self, kwargs: Mapping[str, Any]) -> Tensor:
        """`img_ids` [N, 3]."""
        return kwargs["img_ids"]

    def layout(self, kwargs: Mapping[str, Any], caller: Any = None) -> Layout:
        """From the frames, rows and columns in `img_ids`."""
        target, *references = self._grids(kwargs, caller)
        return Layout(kwargs["encoder_hidden_states"].shape[1], target, tuple(references))

    def _grids(self, kwargs: Mapping[str, Any], caller: Any) -> tuple[Grid, ...]:
        ids: Tensor = kwargs["img_ids"]
        known, written, grids = self._read
        # reading ids waits for the device; a pipeline uses one tensor for all its calls
        if known is not ids or written != version(ids):
            grids = image_grids(ids)
            self._read = ids, version(ids), grids
        return grids

    def inputs(self, layout: Layout, batch: int, device: torch.device) -> dict[str, Any]:
        """Of a pipeline call; `img_ids` holds each token's image, row and column."""
        config = self.transformer.config
        grids = (layout.target_grid, *layout.reference_grids)
        places = [torch.cartesian_prod(*map(torch.arange, grid)) for grid in grids]
        ids = torch.cat([F.pad(place, (1, 0), value=image) for image, place in enumerate(places)])
        zeros = partial(torch.zeros, device=device)
        inputs = {
            "hidden_states": zeros(batch, layout.n_image, config.in_channels),
            "encoder_hidden_states": zeros(batch, layout.n_text, config.joint_attention_dim),
            "pooled_projections": zeros(batch, config.pooled_projection_dim),
            "timestep": zeros(batch),
            "img_ids": ids.float().to(device),
            "txt_ids": zeros(layout.n_text, 3),
        }
        return inputs | ({"guidance": zeros(batch)} if config.guidance_embeds else {})

    def gather_rope(
        self, rope: tuple[Tensor, Tensor], rows: Tensor, n_text: int
    ) -> tuple[Tensor, Tensor]:
        """From (cos, sin), each [S, D] with the text rows first."""
        index = with_text_rows(rows, n_text)
        cos, sin = rope
        return cos[index], sin[index]

    def sliced_rope(
        self, rope: tuple[Tensor, Tensor], rows: slice, n_text: int
    ) -> tuple[Tensor, Tensor]:
        """Text rows come first."""
        cos, sin = rope
        return cos[..., : n_text + rows.stop, :], sin[..., : n_text + rows.stop, :]

    def rotated(self, key: Tensor, rope: tuple[Tensor, Tensor], rows: slice, n_text: int) -> Tensor:
        """By (cos, sin) of the joint sequence."""
        cos, sin = (part[..., n_text + rows.start : n_text + rows.stop, :] for part in rope)
        return per_sample(apply_rotary_emb)(key, (cos, sin), sequence_dim=1)

    def normed_states(self, layer: int, kwargs: Mapping[str, Any]) -> Tensor:
        """By the block's first norm, which in a single-stream block also sees the text."""
        block, states, temb = self.blocks[layer], kwargs["hidden_states"], kwargs["temb"]
        if layer < len(self.transformer.transformer_blocks):
            return block.norm1(states, emb=temb)[0]
        text = kwargs["encoder_hidden_states"]
        return block.norm(torch.cat([text, states], dim=1), emb=temb)[0][:, text.shape[1] :]

    def merge_points(self, layer: int) -> MergePoints:
        """Around attention and MLP, whose first half it is in a single-stream block."""
        block = self.blocks[layer]
        if layer < len(self.transformer.transformer_blocks):
            return MergePoints(block.attn, block.ff)
        return MergePoints(block.attn, block.proj_mlp, block.norm, block.proj_out)


def image_grids(ids: Tensor) -> tuple[Grid, ...]:
    """The token grid of each image in `img_ids` [N, 3] or [B, N, 3], the target's first.

    Counted, not read: low precision rounds positions above 256.

    Raises:
        ToPiError: the target does not come first, or an image is not a full rectangle of tokens.
    """
    ids = (ids[0] if ids.ndim == 3 else ids).float().cpu()
    if ids[0, 0] != 0:
        raise ToPiError("The target tokens must come first in the image sequence (img_ids 0, ...).")
    _, lengths = torch.unique_consecutive(ids[:, 0], return_counts=True)
    return tuple(_grid(image[:, 1], image[:, 2]) for image in ids.split(lengths.tolist()))


def _grid(rows: Tensor, columns: Tensor) -> Grid:
    """The grid of one image's tokens, whose rows and columns [N] may be rounded."""
    count = len(rows)
    first_row = (columns.diff() >= 0).cumprod(0).sum() + 1  # until the column falls back
    width = 1 if (columns == columns[0]).all() else int(first_row)
    if count % width == 0:
        rows, columns = (each.reshape(-1, width) for each in (rows, columns))
        alike = (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
        if alike and _rises_by_one(rows[:, 0]) and _rises_by_one(columns[0]):
            return count // width, width
    raise ToPiError(
        f"The {count} tokens of an image do not fill a rectangle row by row (img_ids); only images "
        "that do are supported."
    )


def _rises_by_one(positions: Tensor) -> bool:
    """True if each of the positions [n] is one more than the last, up to the rounding of bf16."""
    off = positions - positions[0] - torch.arange(len(positions))
    return bool((off.abs() <= 2 * (positions.abs().max() // 256)).all())
