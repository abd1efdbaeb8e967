"""Validation of what is read from files: every error names the file and the field."""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from topi.errors import ToPiError

T = TypeVar("T")


def parse(content: str | bytes, kind: type[T], path: Path | str, again: str) -> T:
    """JSON text as an object of `kind`, without any conversion between types.

    Args:
        content: the JSON text.
        kind: a dataclass, a TypedDict or a pydantic model. Use `pydantic.FiniteFloat` for numbers.
        path: of the file, for the message.
        again: what the user can do about a damaged file, for the message.

    Raises:
        ToPiError: it is not JSON, or a field is missing, of another type or out of range.
    """
    try:
        return _adapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        where = f"field {field}: " if field else ""
        raise ToPiError(
            f"{path} is not valid: {where}{first['msg']}. To repair: {again}"
        ) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
