"""References of another size than the pipeline would give them."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from topi.errors import ToPiError
from topi.models.adapter import Grid
from topi.models.held import clean_copies, replaced


def resized(picture: Tensor, scale: float, token: int) -> Tensor:
    """Pictures [..., H, W] in [-1, 1] at `scale` of each side, in tokens of `token` pixels."""
    *front, height, width = picture.shape
    size = tuple(max(1, round(side * scale / token)) * token for side in (height, width))
    flat = picture.reshape(-1, 1, height, width)
    flat = F.interpolate(flat.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)
    return flat.reshape(*front, *size).to(picture.dtype)


@contextmanager
def resized_references(pipe: Any, scale: float) -> Iterator[list[Grid]]:
    """Let a pipeline encode its references at `scale` of each side, and count their positions so.

    Only the transformer sees them so: a text encoder that reads references gets them whole, and a
    picture that is painted into keeps its size.

    Yields:
        The token grids that the references would have had, from the pipeline's next call on.

    Raises:
        ToPiError: it is no pipeline, or one that paints into its reference; or, inside, a reference
            is given as latents.
    """
    # FLUX.2 encodes its references apart from the noise
    name = next((n for n in ("prepare_image_latents", "prepare_latents") if hasattr(pipe, n)), None)
    if name is None:
        raise ToPiError(
            "References are resized by the pipeline; attach to it, not the transformer."
        )
    stock, takes = getattr(pipe, name), inspect.signature(pipe.prepare_latents).parameters
    paints = "timestep" in takes  # noise is added to a picture, so that its size must stay
    if paints and "image_reference" not in takes:
        raise ToPiError(
            f"{type(pipe).__name__} has the picture that it paints into as its reference, which "
            "must keep its size; DownscaledRef does not go with it."
        )
    signature = inspect.signature(stock)
    which = "image_reference" if paints else next(iter(signature.parameters))
    token = pipe.vae_scale_factor * 2
    full: list[Grid] = []
    shapes: list[tuple[int, int, int]] = []

    def prepare(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        images = given.get(which)
        if images is None and paints:  # then the picture is its own reference
            images = given["image"]
        if images is None:
            full.clear()
            return stock(**given)
        pictures = images if isinstance(images, list) else [images]
        if any(picture.shape[1] != 3 for picture in pictures):
            raise ToPiError("The reference is given as latents; give the picture to resize it.")
        full[:] = [(p.shape[-2] // token, p.shape[-1] // token) for p in pictures]
        small = [resized(picture, scale, token) for picture in pictures]
        shapes[:] = [(1, p.shape[-2] // token, p.shape[-1] // token) for p in small]
        given[which] = small if isinstance(images, list) else small[0]
        return stock(**given)

    def recount(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        # Qwen's pipelines tell the grids apart from the latents; the list stays the same object,
        # by which steps of one pipeline call are told
        for sample in {id(sample): sample for sample in kwargs.get("img_shapes", ())}.values():
            if len(sample) == 1 + len(shapes):
                sample[1:] = shapes
        return args, kwargs

    with replaced(pipe, name, prepare), called_before(pipe.transformer, recount):
        yield full


@contextmanager
def called_before(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """`function(module, args, kwargs)` says with which arguments a module is called; not copies."""
    handle = module.register_forward_pre_hook(function, with_kwargs=True)

    def clean(state: dict[str, Any]) -> None:
        for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            state[name] = state[name].copy()
            state[name].pop(handle.id, None)

    try:
        with clean_copies(module, clean):
            yield
    finally:
        handle.remove()
