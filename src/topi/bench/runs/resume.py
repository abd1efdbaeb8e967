"""Work that a killed process can continue: rows on disk, and one process at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from topi.bench.data import EditSample, ids_of
from topi.bench.results import files
from topi.bench.runs.cell import progress
from topi.errors import ToPiError

Row = dict[str, Any]


@contextmanager
def alone(lock: AbstractContextManager[bool], work: str) -> Iterator[None]:
    """Hold a lock, so that no other process does the same work.

    Args:
        lock: yields whether this process got it, as `files.lock` does.
        work: what the lock protects, for example "calibration of tiny_flux-1234".

    Raises:
        ToPiError: another process holds the lock.
    """
    with lock as acquired:
        if not acquired:
            raise ToPiError(f"Another process is running the {work}. Wait until it has finished.")
        yield


def collect(
    data: Sequence[EditSample],
    row_of: Callable[[int, EditSample], Row],
    title: str,
    path: Path | None = None,
) -> list[Row]:
    """One row per sample, in the order of the data. Rows that `path` holds are not made again.

    Args:
        row_of: makes the row of a sample from its index in `data`.
        title: of the progress bar.
        path: JSON lines, appended as they come; None keeps them in memory only.
    """
    return collect_batches(data, lambda *batch: map(row_of, *batch), title, path, 1)


def collect_batches(
    data: Sequence[EditSample],
    rows_of: Callable[[Sequence[int], Sequence[EditSample]], Iterable[Row]],
    title: str,
    path: Path | None = None,
    batch: int = 1,
) -> list[Row]:
    """`collect` for work that takes several samples at once.

    Args:
        rows_of: makes the rows of some samples from their indices in `data`.
        batch: so many samples at most.
    """
    rows = [] if path is None else files.resume_lines(path)
    done = {row["sample"] for row in rows}
    missing = [index for index, name in enumerate(ids_of(data)) if name not in done]
    with progress(title, len(data), len(done)) as advance:
        for start in range(0, len(missing), batch):
            indices = missing[start : start + batch]
            samples = [data[index] for index in indices]
            known = list(map(_about, indices, samples))
            for about, row in zip(known, rows_of(indices, samples), strict=True):
                rows.append(about | row)
                if path is not None:
                    files.append(path, rows[-1])
                advance(about["sample"])
    return sorted(rows, key=lambda row: row["index"])


def _about(index: int, sample: EditSample) -> Row:
    return {
        "sample": files.checked_name(sample.id),
        "index": index,
        "category": sample.category,
        "task": sample.task,
    }
