"""Names of files that are made of other names: two texts never become one name."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from topi.errors import ToPiError

LONGEST = 200
"""Characters of a name; a file name may have 255 bytes, with endings such as `_0.png`."""
LONGEST_BYTES = 220
MARK = "@"
"""Stands before the hash in a name that had to be changed, and in no other name."""


def checked_name(name: Any) -> str:
    """A key or an id that becomes a part of a path: it cannot lead out of its folder.

    Raises:
        ToPiError: it is not one plain name, too long, or no valid Unicode.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(character in name for character in "/\\\0")
        or not _fits(name)
    ):
        shown = repr(name)[:LONGEST]
        raise ToPiError(
            f"{shown} cannot name a file: its store or data set is broken. A name has at most "
            f"{LONGEST_BYTES} bytes, no slash and only valid Unicode."
        )
    return name


def file_name(text: str) -> str:
    """A text as one plain part of a path; different texts have different names.

    A text of letters, digits and `.=+-_` that does not begin with a dot is its own name. In any
    other, what is not allowed becomes `_`, and `@` follows with a hash of the text.
    """
    plain = re.sub(r"[^\w.=+-]+", "_", text).lstrip(".")
    if plain == text and text and _fits(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    short = plain.encode()[: LONGEST_BYTES // 2].decode(errors="ignore")
    return f"{short}{MARK}{digest}"


def file_names(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """`file_name` of each text, with a hash appended where an earlier name is the same file.

    Args:
        texts: in the order in which they get their names.
        taken: names that are in use already.
    """
    names, seen = [], set(map(folded, taken))
    for text in texts:
        name, attempt = file_name(text), 1
        while folded(name) in seen:
            name, attempt = file_name(f"{text}/{attempt}"), attempt + 1
        seen.add(folded(name))
        names.append(name)
    return names


def same_file(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that are one file where case does not count; None: no such."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(folded(name), name)) != name:
            return other, name
    return None


def folded(name: str) -> str:
    """A form that is equal for two names that are one file on macOS and Windows."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_unicode(text: str) -> bool:
    """True if a text can be written as UTF-8. A lone surrogate, which JSON may hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def can_be_path(text: str) -> bool:
    """True if a file system accepts a path: no NUL, no part of more than 255 bytes."""
    longest = max(len(part.encode(errors="surrogatepass")) for part in text.split("/"))
    return "\0" not in text and longest <= 255 and len(text) < 1000


def _fits(name: str) -> bool:
    return is_unicode(name) and len(name) <= LONGEST and len(name.encode()) <= LONGEST_BYTES
