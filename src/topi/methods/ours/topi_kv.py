"""ToPi-KV: store the keys and values of the reference tokens, and attend to those that are kept.

An anchor scores as ToPi and stores what reference tokens are to every layer; between anchors none
is computed at all, and the target attends to a cover of the stored ones. Ours; no paper.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from topi.engine.transfer import send, send_all
from topi.errors import ToPiError
from topi.methods.base import Call
from topi.methods.ours.topi_cover import ToPiCover
from topi.methods.parameters import check_one_of, check_share, check_whole
from topi.methods.parts.anchor_masks import static_set
from topi.methods.parts.kv_store import Drift, KVReuse, KVStore, Pair, check_drift, take
from topi.models import Layout, ModelFacts

SELECTIONS = ("cover", "top")


def coarse_grid(grid: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    """Every `stride`-th token along rows and columns, from the middle of the first cell on: [n]."""
    rows, columns = (
        torch.arange(min(stride // 2, size - 1), size, stride, device=device) for size in grid
    )
    return (rows[:, None] * grid[1] + columns).flatten()


@dataclass
class ToPiKV(KVReuse, ToPiCover):
    """ToPi whose kept tokens are stored instead of computed; `KVStore` tells the memory.

    An anchor holds the pairs of all reference tokens, which stay for masks that each step draws
    anew. Under `selection="top"` or `redraw="anchor"`, those of dropped tokens leave after it,
    except with `extrapolate`, which holds those of two anchors.

    Args:
        front_layers: layers that compute all reference tokens at every step.
        selection: "cover": that of `ToPiCover`, whose parameters are read then; "top": ToPi's own.
        per_layer: every layer that stores is also scored, and keeps its own tokens.
        coarse: also keep every `coarse`-th token along rows and columns, whatever its score; 0: no.
        live: share of the reference tokens that every step computes, in turn: those that cover most
            of the scores, lately computed ones damped (see `ToPiCover`). Their new pairs go to the
            store.
        extrapolate: carry keys and values on linearly in the timestep, from the two latest steps
            that ran in full; False: as they were.
        drift: an anchor comes when the target's keys in the scored layers have changed by more
            than this (mean absolute, relative) since the last one, not every `update_every` steps;
            to see it, every step waits for the device in each scored layer.
    """

    variants: ClassVar = {"topi_kv": {}}
    dropped: ClassVar[str] = "prune"  # nothing is there to merge

    score: str = "influence"
    selection: str = "cover"
    per_layer: bool = False
    coarse: int = 0
    live: float = 0.0
    extrapolate: bool = False
    drift: float | None = None
    _before: KVStore = field(default_factory=KVStore, init=False, repr=False, compare=False)
    _times: dict[str, list[float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _seen: dict[str, tuple[Tensor, dict[int, Tensor]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _layer_scores: dict[int, dict[str, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _layer_kept: dict[str, dict[int, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _drift: Drift = field(default_factory=Drift, init=False, repr=False, compare=False)
    _renewed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _live: dict[str, tuple[int, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("selection", self.selection, SELECTIONS)
        check_whole("coarse", self.coarse, least=0)
        check_share("live", self.live)
        if self.live and self.extrapolate:
            raise ToPiError("live tokens are up to date; leave extrapolate off.")
        check_drift(self.drift)
        if self.batch_mask != "union":
            raise ToPiError("A store has one set of tokens for a batch; leave batch_mask=union.")
        if self.per_layer and self.covers:
            raise ToPiError("per_layer goes with selection=top; a cover has one mask for all.")

    @property
    def covers(self) -> bool:
        """By `selection`."""
        return self.selection == "cover"

    @property
    def draws(self) -> bool:
        """Also to say which tokens live."""
        return self.covers or self.live > 0

    def prepare(self, model: ModelFacts) -> None:
        """Every layer that stores is scored where each has tokens of its own."""
        super().prepare(model)
        if self.per_layer:
            self._layers = frozenset(range(self.front_layers, model.depth))

    def reset(self) -> None:
        """Free all stores."""
        super().reset()
        self._before, self._times, self._seen = KVStore(), {}, {}
        self._layer_scores, self._layer_kept, self._drift = {}, {}, Drift()
        self._renewed, self._live = {}, {}

    def is_anchor(self, step: int) -> bool:
        """On schedule, or where the drift has become too large."""
        if self.drift is None:
            return super().is_anchor(step)
        return step == self.first_anchor or step in self._drift.due

    def fills_store(self, call: Call) -> bool:
        """Anchors; to extrapolate from, all steps that run in full."""
        return self.runs_in_full(call) if self.extrapolate else super().fills_store(call)

    def begin(self, call: Call) -> None:
        """What a full step will store replaces what there is."""
        super().begin(call)
        if self._scored_step == call.turn and not self._scores:
            self._layer_scores = {}
        if self.fills_store(call):
            self._seen.pop(call.branch, None)
            if self.extrapolate:
                self._before.pairs[call.branch] = self._store.pairs.pop(call.branch, {})
                self._times.setdefault(call.branch, []).append(call.timestep)

    def attend(
        self, call: Call, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> None:
        """Store what live tokens are now, and see how far the target's keys have drifted."""
        super().attend(call, layer, query, key, value, mask)
        if (live := self.live_tokens(call)) is not None and layer >= self.front_layers:
            rows = self._live[self.mask_of(call.branch)][2]
            pair = self._store.get(call.branch, layer)
            for stored, new in zip(pair, (key, value), strict=True):
                stored[:, rows] = new[:, -len(live) :]
        watched = layer in self._layers and call.turn >= self.first_anchor
        if self.drift is not None and watched:
            self._drift.see(call, layer, key, self.drift)

    def add_scores(self, call: Call, layer: int, scores: Tensor) -> None:
        """By layer, where each has tokens of its own."""
        super().add_scores(call, layer, scores)
        if self.per_layer:
            self._layer_scores.setdefault(layer, {})[call.branch] = scores

    def settle(self, call: Call) -> None:
        """Choose the tokens of each layer, where these differ."""
        if not self.per_layer:
            super().settle(call)
            return
        scores = [self.combined(call, of_layer) for of_layer in self._layer_scores.values()]
        masks = [self.union(self.choose(each, call.layout), each) for each in scores]
        weights = [self.combined(call, self._scores)] if self.draws else []
        read = torch.cat([torch.stack(masks), *weights]).cpu()  # together, to wait only once
        kept = [mask.nonzero().flatten() for mask in read[: len(masks)]]
        mask = self.mask_of(call.branch)
        self._weights[mask] = read[len(masks) :]
        self._layer_kept[mask] = dict(zip(self._layer_scores, kept, strict=True))
        self._kept[mask] = torch.cat(kept).unique()

    def choose(self, scores: Tensor, layout: Layout, mass: Tensor | None = None) -> Tensor:
        """ToPi's choice, and the coarse grid."""
        kept = super().choose(scores, layout, mass)
        if self.coarse:
            for grid, image in zip(layout.reference_grids, layout.reference_slices, strict=True):
                rows = image.start + coarse_grid(grid, self.coarse, kept.device)
                kept.index_fill_(1, rows, True)
        return kept

    def live_tokens(self, call: Call) -> Tensor | None:
        """The tokens whose turn it is to be computed: ascending indices, None for none."""
        if not self.live or self.runs_in_full(call):
            return None
        mask = self.mask_of(call.branch)
        if self._live.get(mask, (None,))[0] != call.turn:
            with call.timed("selection_seconds"):
                tokens = self.in_turn(
                    mask, call.layout, self._renewed, lambda worth, _: static_set(worth, self.live)
                )
                self._live[mask] = call.turn, tokens, send(tokens, call.device)
        return self._live[mask][1]

    def seen(self, call: Call) -> Tensor:
        """The tokens kept; the others leave the store if they will not be asked for again."""
        renews = (self.covers and self.redraw == "step") or self.extrapolate or self.live
        if renews or call.branch not in self._seen:
            pairs = self._store.pairs[call.branch]
            self._seen[call.branch] = _, rows = self._seen_by_layers(call, [*pairs])
            if not renews:
                pairs |= {layer: take(pair, rows[layer]) for layer, pair in pairs.items()}
        return self._seen[call.branch][0]

    def _seen_by_layers(self, call: Call, layers: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The kept tokens, and on the device those of each layer that the call does not compute."""
        own = self._layer_kept.get(self.mask_of(call.branch))
        kept, live = self.kept(call), self.live_tokens(call)
        if live is not None:
            kept = torch.cat([kept, live]).unique()
        sets = [kept] if own is None else [own[layer] for layer in layers]
        whole = kept if own is None else torch.cat(sets).unique()
        if live is not None:
            sets = [each[~torch.isin(each, live)] for each in sets]
        rows = send_all(sets, call.device)
        return whole, dict(zip(layers, rows * len(layers) if own is None else rows, strict=True))

    def stored(self, call: Call, layer: int, key: Tensor, value: Tensor) -> Pair | None:
        """The kept tokens' pairs, carried on to the time of the call."""
        pair = super().stored(call, layer, key, value)
        if pair is None or call.branch not in self._seen:
            return pair
        rows = self._seen[call.branch][1][layer]
        if pair[0].shape[1] == call.layout.n_reference:
            pair = take(pair, rows)
        before = self._before.get(call.branch, layer)
        if before is None:
            return pair
        earlier, latest = self._times[call.branch][-2:]
        ahead = (call.timestep - latest) / (latest - earlier)
        return tuple(
            now + ahead * (now - then) for now, then in zip(pair, take(before, rows), strict=True)
        )

    @property
    def store_bytes(self) -> int:
        """Both stores."""
        return self._store.nbytes + self._before.nbytes
