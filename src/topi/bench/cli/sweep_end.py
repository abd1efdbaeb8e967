"""What a sweep ends with: its table, and the page of its store."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from topi.bench.cli.options import quiet_fonts
from topi.errors import ToPiError

log = logging.getLogger(__name__)


def show_sweep(store: str, labels: Mapping[str, Collection[str]], out: str) -> None:
    """Print the table of a sweep, write the page of its store and print the path of the page.

    A report that fails does not make the sweep fail: the log says why.

    Args:
        store: folder of the store.
        labels: of the cells of the sweep, by model.
        out: folder of the page.
    """
    from topi.bench.report import build
    from topi.bench.report.checked import checked_store

    quiet_fonts()
    try:
        checked_store(store, tidy=True)
        build(Path(store), Path(out), labels=labels)
    except ToPiError as error:
        log.warning("the sweep is complete, but there is no page: %s", error)
    except Exception:
        log.exception("the sweep is complete, but its page could not be written")
