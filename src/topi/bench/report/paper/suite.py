"""The cells of a store that may be compared, found by what they are, complete or not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from topi.bench.report.paper.entries import Entry, Identity, Run, identity
from topi.bench.results.store import Cell, Store
from topi.errors import ToPiError

log = logging.getLogger(__name__)
MODELS = {"kontext": "Flux.1-Kontext", "qwen_edit": "Qwen-Image-Edit"}
"""Kind of a model -> the model of the paper that stands in the same place."""
NEEDED = {"mini_edit": 1, "mini_edit_plus": 2}
"""Data -> how many references an instruction needs, where that is known."""


@dataclass(frozen=True)
class Suite:
    """Cells of one model that share weights, data, samples, seed, settings and device."""

    model: str
    settings: dict[str, Any]
    count: int
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        check_comparable(self.cells)

    @property
    def weights(self) -> str:
        """Fingerprint of the weights."""
        return self.settings.get("weights", "")

    @property
    def steps(self) -> int:
        """Denoising steps of a run."""
        return self.settings.get("model", {}).get("steps", 0)

    @property
    def kind(self) -> str:
        """The kind of the model, as in `conf/model`."""
        return self.settings.get("model", {}).get("kind", "")

    @property
    def paper_model(self) -> str | None:
        """The model of the paper in whose place this one stands."""
        return MODELS.get(self.kind)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The settings of its data, as a cell's manifest has them."""
        return self.cells[0].manifest.get("config", {}).get("data", {})

    @property
    def needed(self) -> int:
        """How many references its instructions need; 1 where that is not known."""
        return NEEDED.get(self.data.get("name", ""), 1)

    @property
    def references(self) -> int:
        """How many references its samples have; those needed where that is not known."""
        return self.data.get("references") or self.needed

    @property
    def stand_in(self) -> bool:
        """True if it is a small network in place of a real one."""
        return self.settings.get("model", {}).get("source", "standin") != "hub"

    @property
    def random(self) -> bool:
        """True if its weights are random, for tests."""
        return self.settings.get("model", {}).get("source") == "tiny"

    @cached_property
    def created(self) -> str:
        """When its newest cell was begun."""
        return max(cell.created for cell in self.cells)

    @cached_property
    def complete(self) -> frozenset[str]:
        """The keys of its cells that are complete, each looked at once."""
        return frozenset(cell.key for cell in self.cells if cell.complete)

    @cached_property
    def _entries(self) -> dict[Identity, Entry]:
        """Per identity the best cell: a complete one before others, the newest of equals."""
        found = {}
        for cell in sorted(self.cells, key=lambda x: (x.key in self.complete, x.created)):
            entry = Entry(cell)
            found |= {identity(label): entry for label in cell.labels}
        return found

    @cached_property
    def labels(self) -> list[str]:
        """The labels of its cells."""
        return list(dict.fromkeys(entry.label for entry in self._entries.values()))

    def state(self, label: str) -> str:
        """`complete`, `missing`, or how far the cell was when it was asked first."""
        if label not in self._states:
            self._states[label] = self._state(label)
        return self._states[label]

    @cached_property
    def _states(self) -> dict[str, str]:
        return {}

    def _state(self, label: str) -> str:
        entry = self._entries.get(identity(label))
        if entry is None:
            return "missing"
        return "complete" if entry.key in self.complete else entry.cell.state

    def run(self, *labels: str) -> Run:
        """The run of these labels; several are averaged, sample by sample."""
        if labels not in self._runs:
            self._runs[labels] = self._run(labels)
        return self._runs[labels]

    @cached_property
    def _runs(self) -> dict[tuple[str, ...], Run]:
        return {}

    def _run(self, labels: tuple[str, ...]) -> Run:
        states = {label: self.state(label) for label in labels}
        missing = {label: state for label, state in states.items() if state != "complete"}
        entries = (self._entries[identity(label)] for label in labels if label not in missing)
        return Run(labels, tuple(entries), missing)


def check_comparable(cells: Sequence[Cell]) -> None:
    """Refuse cells that must not stand in one table.

    Raises:
        ToPiError: they differ in weights, data, model settings, seed or device; it says in which.
    """
    settings = [_flat(json.loads(text)) for text in {cell.settings: None for cell in cells}]
    differ = sorted({name for s in settings for name in s if s[name] != settings[0].get(name)})
    if differ:
        raise ToPiError(
            f"The cells {cells[0].key} and others cannot be compared, as they differ in "
            f"{', '.join(differ)}: report each by itself, or run the older ones again."
        )


def suites(store: Store) -> list[Suite]:
    """The cells of a store in groups that may be compared, newest last.

    Of one model they all have the same weights, so that no artefact is of another model than the
    next: those with most complete cells, of equals the newest.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in store.load_cells():
        groups.setdefault((cell.model, cell.settings), []).append(cell)
    found = []
    for (model, text), cells in groups.items():
        settings = json.loads(text)
        count = settings.pop("count")
        found.append(Suite(model, settings, count, tuple(cells)))
    return sorted(of_one_version(found), key=lambda suite: suite.created)


def of_one_version(found: Sequence[Suite]) -> list[Suite]:
    """The suites of each model's weights that have most complete cells, of equals the newest."""
    versions: dict[str, dict[str, list[Suite]]] = {}
    for suite in found:
        versions.setdefault(suite.model, {}).setdefault(suite.weights, []).append(suite)

    def rank(version: list[Suite]) -> tuple[int, str]:
        complete = sum(len(suite.complete) for suite in version)
        return complete, max(suite.created for suite in version)

    kept = []
    for model, each in versions.items():
        best = max(each, key=lambda weights: rank(each[weights]))
        kept += each[best]
        if others := [weights for weights in each if weights != best]:
            log.warning(
                "%s: the cells of the weights %s are left out, as more are of %s",
                model,
                ", ".join(others),
                best,
            )
    return kept


def weights_of(found: Iterable[Suite]) -> dict[str, str]:
    """Model -> fingerprint of its weights, of which all its suites are."""
    return {suite.model: suite.weights for suite in found}


def best_suites(found: Iterable[Suite], labels: Iterable[str]) -> list[Suite]:
    """For each model the suite that has most of these labels complete.

    Of equals that whose instructions need most references, then that of most cells, such as the one
    that Table 1 shows, and of these the newest. Suites with references that no instruction needs
    are left out, and models that have none of the labels.
    """
    labels = list(labels)
    best: dict[str, tuple[int, int, int, int, str, Suite]] = {}
    for suite in found:
        if suite.references > suite.needed:
            continue
        done = sum(suite.state(label) == "complete" for label in labels)
        begun = sum(suite.state(label) != "missing" for label in labels)
        rank = (done, begun, suite.needed, len(suite.cells), suite.created, suite)
        if begun and (suite.model not in best or rank[:-1] >= best[suite.model][:-1]):
            best[suite.model] = rank
    return [best[model][-1] for model in sorted(best)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
