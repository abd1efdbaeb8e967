"""One cell of a sweep: run the samples, score them against full context, time them, record."""

import logging
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topi.bench.data import EditSample, ids_of
from topi.bench.editors.editor import Editor
from topi.bench.io.escape import console, one_line
from topi.bench.results import Cell, FullOutputs
from topi.bench.runs.latency import interleaved
from topi.bench.runs.metrics import Metrics
from topi.engine.flops import FlopCounter
from topi.errors import ToPiError
from topi.methods import CallRecord, Method

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What all cells of a model, its data and a seed share; `trim_last`: see `Method.__call__`."""

    editor: Editor
    data: Sequence[EditSample]
    metrics: Metrics
    full: FullOutputs
    seed: int
    trim_last: bool = False


def run_quality(
    bench: Bench,
    method: Method,
    cell: Cell,
    label: str,
    report: Callable[[Mapping[str, Any]], None] = lambda row: None,
    indices: Sequence[int] | None = None,
) -> None:
    """Edit every sample that the cell has no row of, compare with full context, record.

    Args:
        label: what the progress bar says.
        report: called with each new row once it is recorded.
        indices: of the samples that are wanted; None: all.
    """
    counter = FlopCounter(bench.editor.transformer)
    done = {row["sample"] for row in cell.rows}
    wanted = range(len(bench.data)) if indices is None else indices
    ids = ids_of(bench.data)
    with progress(f"{label}: quality", len(wanted), len(done)) as advance:
        for index in wanted:
            if ids[index] in done:
                continue
            sample = bench.data[index]
            full = full_output(bench, sample)
            start = time.perf_counter()
            with method(bench.editor.pipe, draw_seed(bench.seed, sample.id), bench.trim_last):
                image = bench.editor.edit(sample, bench.seed)
            seconds = time.perf_counter() - start
            row = {
                "sample": sample.id,
                "index": index,
                "category": sample.category,
                "task": sample.task,
                "instruction": sample.instruction,
                "seed": bench.seed,
                **bench.metrics(image, full),
                **trace_facts(method.trace),
                "flop_speedup": counter.run(method.trace).speedup,
                "seconds": seconds,
            }
            cell.add_row(row, image, mask_of(method.trace))
            report(row)
            advance(f"{sample.id}: PSNR {row['psnr']:.2f} dB, kept {row['keep_ratio']:.0%}")


def run_latency(
    bench: Bench,
    method: Method,
    cell: Cell,
    label: str,
    samples: int,
    repeats: int,
    indices: Collection[int] | None = None,
) -> None:
    """Time full and method in turns, apart from quality; only pairs the cell does not have yet.

    Args:
        samples: how many, the first ones.
        repeats: pairs of each.
        indices: of these samples, those that are wanted; None: all.
    """
    editor = bench.editor
    wanted = [i for i in range(min(samples, len(bench.data))) if indices is None or i in indices]
    timed, ids = cell.timed(), ids_of(bench.data)
    warmup = 1
    with progress(f"{label}: latency", len(wanted) * repeats, timed.total()) as advance:
        for index in wanted:
            had = timed[ids[index]]
            if had >= repeats:
                continue
            sample = bench.data[index]
            for pair in interleaved(
                lambda sample: editor.edit(sample, bench.seed),
                lambda: method(editor.pipe, draw_seed(bench.seed, sample.id), bench.trim_last),  # noqa: B023
                [sample],
                repeats - had,
                warmup,
                editor.pipe._execution_device,
            ):
                cell.add_latency(
                    {
                        "sample": sample.id,
                        "repeat": had + pair.repeat,
                        "seconds_full": pair.seconds_full,
                        "seconds_method": pair.seconds_method,
                        "scoring_seconds": sum(r.scoring_seconds for r in method.trace),
                        "selection_seconds": sum(r.selection_seconds for r in method.trace),
                    }
                )
                advance(f"{sample.id}: {pair.seconds_full:.2f} s, {pair.seconds_method:.2f} s")
            warmup = 0


def draw_seed(seed: int, sample: str) -> int:
    """Of what a method draws for a sample: samples differ, whatever the order they come in."""
    return zlib.crc32(f"{seed} {sample}".encode())


def full_output(bench: Bench, sample: EditSample) -> Image.Image:
    """The full-context output of a sample: computed once, then read, by whatever cell needs it."""
    with bench.full.claim():
        try:
            image = bench.full.image(sample.id)
        except ToPiError as error:
            log.warning("%s; computing it again", error)
            bench.full.set_aside(sample.id)
            image = None
        if not bench.full.has(sample.id):  # it, or one of the references
            image = image or bench.editor.edit(sample, bench.seed)
            bench.full.add(sample.id, image, bench.editor.references(sample))
    return image


def trace_facts(trace: Sequence[CallRecord]) -> dict[str, Any]:
    """What a row tells of a trace.

    `keep_ratio` is the mean over all computed model calls, `pruned_keep_ratio` over those that
    dropped tokens (None if none did); `*_calls` count calls.
    """
    ran = [record for record in trace if not record.skipped]
    pruned = [record for record in trace if record.kept is not None]
    return {
        "keep_ratio": fmean(record.keep_ratio for record in ran) if ran else 1.0,
        "pruned_keep_ratio": fmean(record.keep_ratio for record in pruned) if pruned else None,
        "n_reference": trace[0].n_reference if trace else 0,
        "calls": len(trace),
        "anchor_calls": sum(record.anchor for record in trace),
        "pruned_calls": len(pruned),
        "merged_calls": sum(bool(record.merged) for record in trace),
        "skipped_calls": len(trace) - len(ran),
        "scoring_seconds": sum(record.scoring_seconds for record in trace),
        "selection_seconds": sum(record.selection_seconds for record in trace),
    }


def mask_of(trace: Sequence[CallRecord]) -> dict[str, Any] | None:
    """The tokens that each anchor chose, by branch; None if nothing was dropped.

    An anchor itself runs on all tokens, so its choice is what the branch's next computed call kept
    (None: all).
    """
    if all(record.kept is None for record in trace):
        return None
    anchors = []
    for position, record in enumerate(trace):
        if record.anchor:
            after = (
                r for r in trace[position + 1 :] if r.branch == record.branch and not r.skipped
            )
            following = next(after, None)
            kept = following.kept if following and not following.anchor else None
            anchors.append({"step": record.step, "branch": record.branch, "kept": kept})
    return {"grids": trace[0].layout.reference_grids, "anchors": anchors}


@contextmanager
def progress(title: str, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; elsewhere, as in the log of a cluster job, a line per step."""
    title, screen = one_line(title), console(None, sys.stderr)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}", style="dim", markup=False),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, last="")

        def advance(last: str) -> None:
            last = one_line(last)
            bar.update(task, advance=1, last=last)
            if not screen.is_terminal:
                log.info("%s %d/%d %s", title, bar.tasks[task].completed, total, last)

        yield advance
