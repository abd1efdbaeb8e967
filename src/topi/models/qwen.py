"""Qwen-Image-Edit and Qwen-Image-Edit-Plus: dual-stream blocks; one or more references."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor, nn

from topi.errors import ToPiError
from topi.models.adapter import Adapter, Layout, MergePoints, register
from topi.models.rope import per_sample, take_rows


@register
class QwenAdapter(Adapter):
    """`QwenImageTransformer2DModel`: `img_shapes[0]` is [(frames, rows, columns)], target first."""

    transformer_class = "QwenImageTransformer2DModel"
    published_layers: ClassVar = {(60,): (35, 37, 42)}  # appendix C.3
    published_cache: ClassVar = {
        (60,): {
            # The fit for the Qwen-Image family in vllm-omni, there called empirical; negative at 0
            "teacache": {"coefficients": (-450.0, 280.0, -45.0, 3.2, -0.02), "ceiling": 0.2},
            # MagCache's own for Qwen-Image-Edit: calibration of the first branch at 50 steps
            "magcache": {
                "ratios": (
                    *(1.0, 1.41406, 1.09375, 1.3125, 1.20312, 1.0625, 1.125),
                    *(1.14062, 1.17969, 1.09375, 1.10938, 1.10938, 1.07031, 1.04688),
                    *(1.09375, 1.03906, 1.0625, 1.04688, 1.0625, 1.04688, 1.07031),
                    *(1.03125, 1.03906, 1.03906, 1.02344, 1.01562, 1.03125, 1.00781),
                    *(1.01562, 1.00781, 1.01562, 1.0, 1.0, 0.98828, 0.98047),
                    *(0.98047, 0.97266, 0.92578, 0.94922, 0.98438, 0.89844, 0.91797),
                    *(0.92188, 0.84375, 0.82812, 0.78516, 0.87891, 0.71094, 0.56641),
                    *(0.50781,),
                ),
                "threshold": 0.06,
                "max_skips": 2,
            },
        }
    }

    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The dual-stream blocks."""
        return (self.transformer.transformer_blocks,)

    def positions(self, kwargs: Mapping[str, Any]) -> list:
        """`img_shapes`."""
        return kwargs["img_shapes"]

    def layout(self, kwargs: Mapping[str, Any], caller: Any = None) -> Layout:
        """From `img_shapes`; it is the same for every sample of a batch.

        Raises:
            ToPiError: the pipeline is `QwenImageLayeredPipeline`.
        """
        if kwargs.get("additional_t_cond") is not None:
            raise ToPiError(
                "QwenImageLayeredPipeline computes several pictures at once, its layers, which is "
                "not supported; run it without a method."
            )
        shapes = kwargs["img_shapes"][0]
        shapes = shapes if isinstance(shapes, list) else [shapes]
        target, *references = ((frames * rows, columns) for frames, rows, columns in shapes)
        return Layout(kwargs["encoder_hidden_states"].shape[1], target, tuple(references))

    def inputs(self, layout: Layout, batch: int, device: torch.device) -> dict[str, Any]:
        """Of a pipeline call whose texts have no padding."""
        config = self.transformer.config
        zeros = partial(torch.zeros, device=device)
        grids = (layout.target_grid, *layout.reference_grids)
        return {
            "hidden_states": zeros(batch, layout.n_image, config.in_channels),
            "encoder_hidden_states": zeros(batch, layout.n_text, config.joint_attention_dim),
            "timestep": zeros(batch),
            "img_shapes": [[(1, *grid) for grid in grids]] * batch,
        }

    def gather_rope(
        self, rope: tuple[Tensor, Tensor], rows: Tensor, n_text: int
    ) -> tuple[Tensor, Tensor]:
        """From complex (image [N, D/2], text [T, D/2])."""
        image, text = rope
        return image[rows], text

    def sliced_rope(
        self, rope: tuple[Tensor, Tensor], rows: slice, n_text: int
    ) -> tuple[Tensor, Tensor]:
        """The text has an embedding of its own."""
        return rope[0][..., rows, :], rope[1]

    def rotated(self, key: Tensor, rope: tuple[Tensor, Tensor], rows: slice, n_text: int) -> Tensor:
        """By the complex embedding of the image stream."""
        rotate = per_sample(apply_rotary_emb_qwen)
        return rotate(key, rope[0][..., rows, :], use_real=False)

    def gather_extras(self, kwargs: dict[str, Any], rows: Tensor | slice) -> dict[str, Any]:
        """Also `modulate_index` [B, N]."""
        # zero_cond_t checkpoints modulate target and reference tokens differently
        if (index := kwargs.get("modulate_index")) is not None:
            kwargs["modulate_index"] = take_rows(index, rows)
        return kwargs

    def normed_states(self, layer: int, kwargs: Mapping[str, Any]) -> Tensor:
        """By the block's first image norm and modulation."""
        block = self.blocks[layer]
        modulation = block.img_mod(kwargs["temb"]).chunk(2, dim=-1)[0]
        normed = block.img_norm1(kwargs["hidden_states"])
        return block._modulate(normed, modulation, kwargs.get("modulate_index"))[0]

    def merge_points(self, layer: int) -> MergePoints:
        """Around attention and MLP of the image stream."""
        block = self.blocks[layer]
        return MergePoints(block.attn, block.img_mlp)
