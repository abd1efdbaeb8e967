"""Objects that a method changes for a while: by one at a time, and not in copies made meanwhile."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from topi.errors import ToPiError

_held: dict[int, Any] = {}
_lock = Lock()


@contextmanager
def held(things: Iterable[Any], refusal: str) -> Iterator[None]:
    """Hold all of `things`, or none; no other thread, and no other block, can hold one meanwhile.

    Raises:
        ToPiError: one of them is held; the message is `refusal` with its class in place of `{}`.
    """
    by_id = {id(thing): thing for thing in things}
    with _lock:
        for key, thing in by_id.items():
            if key in _held:
                raise ToPiError(refusal.format(type(thing).__name__))
        _held.update(by_id)
    try:
        yield
    finally:
        for key in by_id:
            _held.pop(key, None)


def is_held(thing: Any) -> bool:
    """True if somebody holds it."""
    return id(thing) in _held


@contextmanager
def clean_copies(thing: Any, clean: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Copies and pickles of `thing` are made from what `clean` leaves of its attributes.

    `copy` and `pickle` ask the object itself how to take it apart.

    Args:
        clean: undoes changes in a copy of the attributes, by name; it may be called at any time.
    """
    slots, take_apart = vars(thing), thing.__reduce_ex__
    before = slots.get("__reduce_ex__")

    def reduce(protocol: int) -> tuple:
        make, arguments, state, *rest = take_apart(protocol)
        state = {name: value for name, value in state.items() if name != "__reduce_ex__"}
        clean(state)
        return make, arguments, state, *rest

    slots["__reduce_ex__"] = reduce
    try:
        yield
    finally:
        if before is None:
            slots.pop("__reduce_ex__", None)
        else:
            slots["__reduce_ex__"] = before


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Hold `thing`, whose attribute `name` is `value` meanwhile; in its copies it is as before.

    Raises:
        ToPiError: it is held.
    """
    refusal = "Another method is attached to this {}; leave its `with` block first."
    slots = vars(thing)
    before = {name: slots[name]} if name in slots else {}

    def restore(state: dict[str, Any]) -> None:
        state.pop(name, None)
        state.update(before)

    with held([thing], refusal), clean_copies(thing, restore):
        slots[name] = value
        try:
            yield
        finally:
            slots.pop(name, None)
            slots.update(before)
