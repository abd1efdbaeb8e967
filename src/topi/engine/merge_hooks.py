"""The hooks inside of blocks by which a layer runs on merged tokens."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from topi.engine.hooks import keywords
from topi.models.adapter import MergePoints

if TYPE_CHECKING:
    from topi.engine.layers import Layers


class MergeAttentionHook(ModelHook):
    """On a block's attention: runs it on merged image tokens."""

    def __init__(self, layers: "Layers", points: MergePoints) -> None:
        super().__init__()
        self.layers, self.points = layers, points

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the attention on the merged image tokens."""
        layers, forward = self.layers, self.fn_ref.original_forward
        if layers.state.call is None:
            return forward(*args, **kwargs)
        kwargs = keywords(module, args, kwargs)
        states, text = kwargs["hidden_states"], layers.state.call.layout.n_text
        joint, fused = self.points.joint, self.points.fused  # joint: text rows come first
        if joint and not fused:
            merge = layers.state.open_merge  # which the norm before has asked for
        else:
            merge = layers.ask_merge(states[:, text:] if joint else states)
        if merge is None or merge.scope == "mlp":
            return forward(**kwargs)
        if merge.rows is not None:
            rope = kwargs["image_rotary_emb"]
            kwargs["image_rotary_emb"] = layers.adapter.gather_rope(rope, merge.rows, text)
        # the norm before has merged for the whole block, the projection behind will unmerge
        if merge.scope == "block" and not fused:
            return forward(**kwargs)
        if joint:
            kwargs["hidden_states"] = on_image_rows(merge.merge, states, text)
            return on_image_rows(merge.unmerge, forward(**kwargs), text)
        kwargs["hidden_states"] = merge.merge(states)
        image, text, *more = forward(**kwargs)
        # an IP-Adapter's attention yields another output for each image token
        both = merge.unmerge(torch.cat([image, *more], dim=-1) if more else image)
        image, *more = both.split(image.shape[-1], dim=-1)
        return image, text, *more


class MergeMLPHook(ModelHook):
    """On a block's MLP, or its first half: runs it on merged image tokens."""

    def __init__(self, layers: "Layers", points: MergePoints) -> None:
        super().__init__()
        self.layers, self.points = layers, points

    def new_forward(self, module: nn.Module, states: Tensor) -> Tensor:
        """Run the MLP as the layer's merge, which is decided before the attention, says."""
        layers, forward = self.layers, self.fn_ref.original_forward
        merge = layers.state.open_merge
        if layers.state.call is None or merge is None or merge.scope not in ("mlp", "both"):
            return forward(states)
        if not self.points.joint:
            return merge.unmerge_mlp(forward(merge.merge(states)))
        text = layers.state.call.layout.n_text
        return on_image_rows(
            merge.unmerge_mlp, forward(on_image_rows(merge.merge, states, text)), text
        )


class MergeNormHook(ModelHook):
    """On a single-stream block's norm: decides on merging, and merges for the whole block."""

    def __init__(self, layers: "Layers") -> None:
        super().__init__()
        self.layers = layers

    def post_forward(
        self, module: nn.Module, output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Ask for a merge; apply it here if it spans the block."""
        layers = self.layers
        if layers.state.call is None:
            return output
        states, gate = output
        text = layers.state.call.layout.n_text
        merge = layers.ask_merge(states[:, text:])
        if merge is None or merge.scope != "block":
            return output
        return on_image_rows(merge.merge, states, text), gate


class MergeProjectionHook(ModelHook):
    """On a single-stream block's output projection: unmerges before gate and residual."""

    def __init__(self, layers: "Layers") -> None:
        super().__init__()
        self.layers = layers

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """Undo a merge that spans the block."""
        merge = self.layers.state.open_merge
        if merge is None or merge.scope != "block":
            return output
        return on_image_rows(merge.unmerge, output, self.layers.state.call.layout.n_text)


def on_image_rows(operator: Callable[[Tensor], Tensor], states: Tensor, n_text: int) -> Tensor:
    """Apply `operator` to the image rows of `[text | image]` states [B, S, D]."""
    return torch.cat([states[:, :n_text], operator(states[:, n_text:])], dim=1)
