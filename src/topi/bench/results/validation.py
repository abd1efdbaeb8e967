"""Validation of what is read from files: every error names the file and the field."""

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from topi.bench.results.links import open_plain
from topi.errors import ToPiError

T = TypeVar("T")
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
AtLeastZero = Annotated[FiniteFloat, Field(ge=0)]
AboveZero = Annotated[FiniteFloat, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Index = NonNegativeInt


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


def read(path: Path | str, kind: type[T], again: str, version: int | None = None) -> T:
    """A file of JSON as an object of `kind`, see `parse`.

    Args:
        path: of a regular file in UTF-8.
        kind: see `parse`.
        again: what the user can do about a damaged file, for the message.
        version: what the field `schema` must say; None: there is no such field.

    Raises:
        ToPiError: it cannot be read or is not valid.
    """
    text = read_text(path, again)
    if version is not None:
        said = parse(text, dict[str, Any], path, again).get("schema")
        if type(said) is not int or said != version:
            raise ToPiError(
                f"{path} is not valid: field schema: it should be {version} and is {said!r:.40}. "
                f"To repair: {again}"
            )
    return parse(text, kind, path, again)


def read_csv(path: Path | str, kind: type[T], again: str) -> list[T]:
    """The lines of a CSV file below its header, each an object of `kind` made of texts.

    Raises:
        ToPiError: it cannot be read, names a column twice, or a line is not valid.
    """
    reader = csv.reader(io.StringIO(read_text(path, again), newline=""), strict=True)
    try:
        header, *lines = [(reader.line_num, line) for line in reader if line] or [(0, [])]
    except csv.Error as error:
        raise ToPiError(f"{path} is not valid: line {reader.line_num}: {error}.") from error
    names = header[1]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ToPiError(f"{path} is not valid: it has the column {', '.join(sorted(twice))} twice.")
    records = []
    for number, line in lines:
        where = f"{path}, line {number},"
        if len(line) != len(names):
            raise ToPiError(f"{where} has {len(line)} fields, but the header has {len(names)}.")
        record = dict(zip(names, line, strict=True))
        records.append(parse(json.dumps(record), kind, where, again))
    return records


def read_text(path: Path | str, again: str) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        ToPiError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", opener=open_plain) as file:
            return file.read()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ToPiError(f"{path} cannot be read ({why}). To repair: {again}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
