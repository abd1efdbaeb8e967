"""Speed and error of each scoring kernel: `python -m topi.bench.speed.scoring_speed`.

The size is real on a GPU, and scaled down elsewhere without --real-size. The time is what scoring
adds to the layer's own attention, from which fused kernels take the rows' log-sum-exp. The error is
that of a layer's score (Eq. 9) in the model's precision against float64 sums of the same inputs,
and the number of tokens for which Eq. 10 decides otherwise. One line of JSON per kernel.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from topi.engine.attention import OwnAttention, known, own_rows, scored_by
from topi.engine.clock import Span
from topi.engine.column_mass import KERNELS
from topi.methods.paper.topi import DEFAULT_TAU, influence, smallest_set
from topi.models import Layout

REAL = (24, 128, Layout(512, (64, 64), ((64, 64),)))
SCALED_DOWN = (4, 64, Layout(32, (16, 16), ((16, 16),)))


def inputs(
    heads: int, width: int, layout: Layout, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> list[Tensor]:
    """Query, key, value [1, S, H, D] with a few keys that draw attention, as in a trained model."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, layout.n_text + layout.n_image, heads, width)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    key *= torch.rand(shape[:2], generator=generator)[..., None, None].mul(2).exp() / 2
    return [states.to(device, dtype) for states in (query, key, value)]


def exact(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Eq. 9 in float64, head by head: [1, |C|]."""
    score = 0
    norms = torch.linalg.vector_norm(value[:, layout.references].double(), dim=-1).mT
    for head in range(query.shape[2]):
        rows = query[:, layout.targets, head].double() * query.shape[-1] ** -0.5
        weights = (rows @ key[:, :, head].double().mT).softmax(-1)
        score = score + norms[:, head] * weights[..., layout.references].sum(1)
    return score


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`, after three runs that are thrown away."""
    spans = []
    for _ in range(3 + repeats):
        span = Span(device)
        work()
        spans.append(span.stop())
    return median(span.seconds for span in spans[3:])


def compare(kernel: str, states: list[Tensor], layout: Layout, truth: Tensor) -> dict[str, float]:
    """The largest and mean relative error of a kernel's score, and tokens kept otherwise."""
    with scored_by(kernel):
        score = influence(*states, layout, None).double()
    error = (score - truth).abs() / truth
    kept, wanted = (smallest_set(each, DEFAULT_TAU) for each in (score, truth))
    return {
        "largest_relative_error": float(error.max()),
        "mean_relative_error": float(error.mean()),
        "kept": int(wanted.sum()),
        "kept_otherwise": int((kept != wanted).sum()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a line per kernel, the fastest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--real-size", action="store_true", help="also without a GPU")
    parsed = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    real = on_gpu or parsed.real_size
    heads, width, layout = REAL if real else SCALED_DOWN
    states = inputs(heads, width, layout, torch.bfloat16, device)
    truth = exact(*states, layout)
    lines = []
    for kernel in ("chunked", *(name for name in KERNELS if on_gpu or name != "triton")):
        line = {"kernel": kernel, "device": device.type, "real_size": real}
        with scored_by(kernel), known(OwnAttention(*states)):
            own_rows(*states[:2])
            line |= compare(kernel, states, layout, truth)
            work = partial(influence, *states, layout, None)
            line["seconds"] = seconds(work, device, parsed.repeats)
        lines.append(line)
    for line in sorted(lines, key=lambda line: line["seconds"]):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
