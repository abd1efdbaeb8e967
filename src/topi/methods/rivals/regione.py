"""RegionE-like freezing: target tokens that the edit leaves alone stop being computed.

After the regions, warm-up and refreshes of RegionE (arXiv 2510.25590); its other half, which skips
steps by a velocity decay fitted for 28 steps, is left out. The region differs at the border: an
edited token there counts as one with all its neighbours edited, where the released code drops it.
The committed results were measured so, with 0.3 to 8 % more tokens computed.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from topi.engine import FreezesTargets
from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.parameters import check_number, check_whole
from topi.methods.parts.kv_store import KVReuse, Pair, take
from topi.models import ModelFacts


def edited_tokens(final: Tensor, reference: Tensor, threshold: float) -> Tensor:
    """Tokens of a predicted final target that do not look like the reference at their place.

    Args:
        final: [..., rows, columns, C] predicted clean latents of the target.
        reference: the same of the reference.
        threshold: of the cosine similarity; up to it a token is edited.

    Returns:
        Bool [..., rows, columns], single tokens eroded away and the rest grown by two tokens.
    """
    alike = F.cosine_similarity(final.float(), reference.float(), dim=-1)
    return grow(clean(alike <= threshold))


def clean(mask: Tensor) -> Tensor:
    """Erosion by the cross of 3 x 3: what stays has those of its four neighbours that there are.

    The released code takes what lies outside for not edited, so that border tokens never stay.
    """
    kept = -mask.float().reshape(-1, 1, *mask.shape[-2:])
    along = torch.maximum(
        F.max_pool2d(kept, (3, 1), 1, (1, 0)), F.max_pool2d(kept, (1, 3), 1, (0, 1))
    )
    return along.reshape(mask.shape) < 0


def grow(mask: Tensor) -> Tensor:
    """Dilation by the square of 5 x 5."""
    grown = F.max_pool2d(mask.float().reshape(-1, 1, *mask.shape[-2:]), 5, 1, 2)
    return grown.reshape(mask.shape) > 0


THRESHOLDS = {"QwenImageTransformer2DModel": 0.8}
"""RegionE's own for Qwen-Image-Edit; for FLUX.1 Kontext, and here for all others, it is 0.93."""


@dataclass
class RegionE(KVReuse, FreezesTargets):
    """Compute the edited target tokens only; the others go on as the last anchor sent them.

    Up to the first anchor all is computed. An anchor stores the keys and values of all image
    tokens, and the step after it predicts the final image and freezes what it leaves as the first
    reference has it: a frozen token keeps the velocity of the anchor, which is one Euler step to
    the next. Between anchors edited tokens alone are computed, against the store; at least one
    always is. Target and first reference must have one grid. Batches freeze what all samples do.

    Args:
        threshold: up to which cosine similarity to the reference a token is edited. None: that of
            RegionE, 0.93 for FLUX.1 Kontext and 0.8 for Qwen-Image-Edit.
        first_anchor: the last step of RegionE's warm-up of six.
        last_full: so many last steps compute all. Frozen tokens go on up to them: the step before
            is no anchor, as in RegionE's 28 steps, where 15, 26 and 27 run in full but not 25.
    """

    variants: ClassVar = {"regione": {"front_layers": 0}}

    first_anchor: int = 5
    threshold: float | None = None
    last_full: int = 2
    _threshold: float = field(default=0.93, init=False, repr=False, compare=False)
    _active: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _at_anchor: tuple[Tensor, float] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    _velocity: dict[str, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("last_full", self.last_full, least=0)
        if self.threshold is not None:
            check_number("threshold", self.threshold, "", lambda number: True)

    def prepare(self, model: ModelFacts) -> None:
        """Settle the threshold."""
        super().prepare(model)
        published = THRESHOLDS.get(model.name, 0.93)
        self._threshold = published if self.threshold is None else self.threshold

    def reset(self) -> None:
        """Also forget the region."""
        super().reset()
        self._active, self._at_anchor, self._velocity = None, None, {}

    def begin(self, call: Call) -> None:
        """At an anchor forget the region; after it, find it.

        Raises:
            ToPiError: the grids differ, or nobody knows which steps are the last.
        """
        super().begin(call)
        layout = call.layout
        if layout.reference_grids[0] != layout.target_grid:
            raise ToPiError(
                f"RegionE compares target and reference token by token, but they have "
                f"{layout.target_grid} and {layout.reference_grids[0]} tokens; give the reference "
                "the size of the output."
            )
        if call.n_steps is None and self.last_full:
            raise ToPiError(
                "RegionE must know how many steps there are; attach it to the pipeline instead of "
                "its transformer, or set last_full=0."
            )
        if call.record.anchor:
            self._active, self._at_anchor = None, (call.latents, call.timestep)
        elif not self.runs_in_full(call) and self._active is None:
            self._active = self._edited(call)

    def _edited(self, call: Call) -> Tensor:
        """The tokens to compute, from what the anchor's step, guidance included, did: ascending."""
        before, then = self._at_anchor
        g, grid = call.layout.n_target, call.layout.target_grid
        target, reference = call.latents[:, :g], call.latents[:, g : 2 * g]
        velocity = (target - before[:, :g]) / (call.timestep - then)
        final = target - call.timestep * velocity
        pictures = (each.unflatten(1, grid) for each in (final, reference))
        edited = edited_tokens(*pictures, self._threshold).flatten(1).any(0)
        if not edited.any():
            edited[F.cosine_similarity(final, reference, dim=-1).amin(0).argmin()] = True
        return edited.nonzero().flatten().cpu()

    def anchors(self, call: Call) -> bool:
        """By the schedule, but where it freezes tokens not just before the last steps."""
        freezes = self._active is not None and call.branch in self._store.pairs
        if freezes and self.last_full and call.turn + 1 >= call.n_steps - self.last_full:
            return False
        return super().anchors(call)

    def runs_in_full(self, call: Call) -> bool:
        """Also the last steps."""
        last = call.n_steps is not None and call.turn >= call.n_steps - self.last_full
        return last or super().runs_in_full(call)

    def active(self, call: Call) -> Tensor | None:
        """The edited tokens."""
        return self._active

    def to_store(self, call: Call) -> slice:
        """All image tokens."""
        return slice(call.layout.n_text, None)

    def stored(self, call: Call, layer: int, key: Tensor, value: Tensor) -> Pair | None:
        """Frozen target tokens and references as they were at the anchor."""
        pair = super().stored(call, layer, key, value)
        if pair is None:
            return None
        rest = torch.ones(call.layout.n_image, dtype=torch.bool)
        rest[self._active] = False
        return take(pair, rest.nonzero().flatten().to(key.device))

    def complete(self, call: Call, output: Tensor) -> Tensor:
        """Frozen tokens keep the anchor's velocity."""
        if call.record.anchor:
            self._velocity[call.branch] = output[:, : call.layout.n_target]
        if call.record.computed is None:
            return output
        whole = self._velocity[call.branch].clone()
        whole[:, self._active.to(whole.device)] = output
        return whole
