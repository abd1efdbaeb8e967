"""Offline calibration: which layers stand for a model's use of its references (section 4.1)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.progress import track

from topi.data import EditSample
from topi.methods.probe import AttentionProbe
from topi.models.editor import Editor


@dataclass(frozen=True)
class Calibration:
    """S^(l) of Eq. 4 and what follows from it.

    Args:
        layers: the top-M layers, ascending (Eq. 5).
        by_layer: S of each layer, the attention mass that target tokens give to references, in
            [0, 1], mean over heads, target tokens, steps and samples.
        by_step: the same over steps, mean over layers (Fig. 3).
        by_category: category -> S of each layer (Fig. 1).
        samples: how many samples it rests on.
    """

    layers: tuple[int, ...]
    by_layer: tuple[float, ...]
    by_step: tuple[float, ...]
    by_category: dict[str, tuple[float, ...]]
    samples: int

    def as_dict(self) -> dict:
        return asdict(self)


def _mean_over(mass: dict, axis: int) -> tuple[float, ...]:
    """Mean of probe.mass over everything but one part of its key (0 step, 2 layer)."""
    groups: dict[int, list[float]] = {}
    for key, shares in mass.items():
        groups.setdefault(key[axis], []).extend(shares)
    return tuple(sum(groups[k]) / len(groups[k]) for k in sorted(groups))


def calibrate(editor: Editor, samples: Sequence[EditSample], top: int = 3) -> Calibration:
    """Run the unmodified editor over `samples` and rank its layers by context sensitivity."""
    probes: dict[str, list[dict]] = {}
    for seed, sample in enumerate(track(samples, f"calibrating {editor.name}")):
        with AttentionProbe()(editor.pipe) as probe:
            editor.edit(sample, seed)
        probes.setdefault(sample.category, []).append(probe.mass)

    def pooled(masses: list[dict]) -> dict:
        return {key: [share for m in masses for share in m[key]] for key in masses[0]}

    everything = pooled([m for masses in probes.values() for m in masses])
    by_layer = _mean_over(everything, 2)
    ranked = sorted(range(len(by_layer)), key=lambda layer: (-by_layer[layer], layer))
    return Calibration(
        layers=tuple(sorted(ranked[:top])),
        by_layer=by_layer,
        by_step=_mean_over(everything, 0),
        by_category={c: _mean_over(pooled(m), 2) for c, m in probes.items()},
        samples=len(samples),
    )
