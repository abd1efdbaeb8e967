"""Names that are made of other names: no two become one, and all of them can name a file."""

import random

import pytest

from topi.bench.io.names import checked_name, file_name, same_file
from topi.errors import ToPiError

PIECES = [
    "a",
    "b",
    "1",
    "_",
    "-",
    ".",
    "@",
    " ",
    "/",
    "\\",
    "\0",
    "\n",
    "é",
    "文",
    "\ud800",
    "=",
    "~",
]


def some_names(number):
    rng = random.Random(0)
    lengths = [*range(6), 150, 300]
    return {"".join(rng.choices(PIECES, k=rng.choice(lengths))) for _ in range(number)}


def test_different_texts_have_different_names_that_are_files(tmp_path):
    texts = some_names(2000)
    texts |= {file_name(text) for text in texts}  # a name is a text, too
    made = {text: file_name(text) for text in texts}
    plain = [text for text, name in made.items() if text == name]
    assert len(set(made.values())) == len(texts) and 50 < len(plain) < len(texts) / 2
    for name in list(made.values())[:50]:
        (tmp_path / f".{checked_name(name)}_10.png.1234567.part").write_bytes(b"")


@pytest.mark.parametrize("text", ["kontext_standin", "a.b", "x=1+2-3", "é"])
def test_a_safe_text_keeps_its_name(text):
    assert file_name(text) == text


def test_what_had_to_be_changed_is_marked():
    names = [file_name(text) for text in ("a b", "a/b", ".a_b", "")]
    assert [name.split("@")[0] for name in names] == ["a_b", "a_b", "a_b", ""]
    assert len({name.split("@")[1] for name in names}) == 4


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", "\ud800", "x" * 201, "文" * 80, 7, None])
def test_what_cannot_name_a_file_is_refused(name):
    with pytest.raises(ToPiError, match="cannot name a file"):
        checked_name(name)


def test_names_that_differ_in_case_only_are_found():
    assert same_file(["a", "b", "A1", "a1", "A"]) == ("A1", "a1")
    assert same_file(["\u00e9", "e\u0301"]) == ("\u00e9", "e\u0301")
    assert same_file(["a", "b", "a"]) is None
