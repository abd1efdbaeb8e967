"""The gain of bf16 and torch.compile in a training step, beside the time to draw its data.

`python -m topi.bench.standins.throughput model=kontext_standin --out FILE` takes a step of each
variant in turn, in one process, on the same batch, of the first size of the last phase.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from topi.bench.editors.standin import FAMILIES
from topi.bench.editors.text import PromptCache
from topi.bench.report.tables.text_table import markdown_lines
from topi.bench.results.files import write_json
from topi.bench.results.provenance import provenance
from topi.bench.results.statistics import Estimate, bootstrap
from topi.bench.runs.launch import exit_code
from topi.bench.standins.module import EditorTraining
from topi.bench.standins.start import starting_point
from topi.bench.standins.stream import Batch, Draw, draw_batch
from topi.bench.standins.training_config import TrainingConfig, compose_training

#: Precision and whether the blocks are compiled; ratios are to the first.
VARIANTS = {
    "float32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "float32, compiled": (torch.float32, True),
    "bf16, compiled": (torch.bfloat16, True),
}
DRAWING = "drawing a batch, one process"


class Steps:
    """Training steps of one variant, outside of a Trainer."""

    def __init__(self, module: EditorTraining, precision: torch.dtype, compiled: bool):
        self.module, self.precision = module, precision
        self.optimizer = module.configure_optimizers()
        if compiled:
            module.transformer.compile_repeated_blocks(dynamic=False)

    def __call__(self, batch: Batch) -> None:
        """Loss, its gradient, clipping, update."""
        low = self.precision != torch.float32
        device = self.module.device.type
        with torch.autocast(device, self.precision) if low else nullcontext():
            loss = self.module.training_step(batch, 0)
        loss.backward()
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()


def measure(
    config: TrainingConfig, device: str, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of a step by variant, and of drawing its batch: one value per round.

    Args:
        warmup: rounds before, in which variants are compiled; they are thrown away.
    """
    phase = config.phases[-1]
    family = FAMILIES[config.model.kind]
    draw = Draw(
        phase.sizes[:1],
        phase.batch,
        family.reference_size,
        **vars(config.data),
        seed=config.seed,
    )
    seconds: dict[str, list[float]] = {name: [] for name in (*VARIANTS, DRAWING)}
    with TemporaryDirectory() as scratch:
        transformer, vae = starting_point(config, Path(scratch))
        prompts = PromptCache()
        steps = {}
        for name, variant in VARIANTS.items():
            own = EditorTraining(
                family, deepcopy(transformer), deepcopy(vae), prompts, Path(scratch)
            )
            steps[name] = Steps(own.to(device), *variant)
        for k in range(warmup + rounds):
            start = time.perf_counter()
            batch = draw_batch(draw, k)
            seconds[DRAWING].append(time.perf_counter() - start)
            prompts(batch.prompts)  # embedded once, by no variant
            order = list(VARIANTS)
            for name in order[k % len(order) :] + order[: k % len(order)]:
                start = time.perf_counter()
                steps[name](batch)
                seconds[name].append(time.perf_counter() - start)
    return {name: values[warmup:] for name, values in seconds.items()}


def gains(seconds: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Speed-up over the first variant, paired by round: medians with intervals."""
    first = np.array(seconds[next(iter(VARIANTS))])
    return {name: bootstrap(first / np.array(s), np.median) for name, s in seconds.items()}


def table(measured: Mapping) -> str:
    """Markdown of what `main` writes."""
    lines = [("training step", "median seconds", "times as fast [95 %]"), ("---", "---:", "---:")]
    for name, gain in gains(measured["seconds"]).items():
        median = float(np.median(measured["seconds"][name]))
        times = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
        lines.append((name, f"{median:.2f}", times))
    return markdown_lines(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the rounds."""
    parser = argparse.ArgumentParser(
        "python -m topi.bench.standins.throughput", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", help="as of python -m topi.bench.standins")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each variant")
    parser.add_argument("--out", type=Path, help="JSON of every round")
    args = parser.parse_args(arguments)
    config = compose_training(args.overrides)
    warnings.filterwarnings("ignore", message=".*self.log")  # there is no Trainer here
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    seconds = measure(config, "cuda" if on_gpu else "cpu", args.rounds)
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    phase = config.phases[-1]
    measured = {
        "model": config.model.name,
        "batch": phase.batch,
        "size": phase.sizes[0],
        "seconds": seconds,
        "provenance": provenance(device, torch.get_num_threads()),
    }
    if args.out:
        write_json(args.out, measured)
    print(f"{measured['model']}, {phase.batch} samples of {phase.sizes[0]} px on {device}\n")
    print(table(measured))


if __name__ == "__main__":
    sys.exit(exit_code(main))
