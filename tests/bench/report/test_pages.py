"""Generated blocks: the committed pages show the committed store."""

import re
from pathlib import Path

import pytest

from topi.bench.cli import main as cli
from topi.bench.report import pages
from topi.bench.report.pages import BLOCKS, read_block, write_blocks
from topi.bench.results.store import Store
from topi.errors import ToPiError

ROOT = Path(__file__).resolve().parents[3]
PAGES = {
    "claims": ROOT / "docs" / "paper.md",
    "leaderboard": ROOT / "docs" / "leaderboard.md",
    "paper-beside-ours": ROOT / "README.md",
}


def test_every_block_is_on_a_page():
    assert set(PAGES) == set(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_committed_pages_show_the_committed_results(name):
    """If this fails: topi pages --store experiments/results README.md docs/*.md."""
    text = BLOCKS[name](Store(ROOT / "experiments" / "results"))
    assert read_block(PAGES[name], name) == text
    assert "stand-in" in text or "_standin" in text
    assert len(re.findall(r"^\|", text, re.MULTILINE)) >= 8


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "BLOCKS", {"cells": lambda store: f"of {store.root.name}"})

    def write(text):
        (tmp_path / "page.md").write_text(text)
        return tmp_path / "page.md"

    return write


def test_only_the_block_changes(page, tmp_path, capsys):
    file = page("above\n<!-- begin cells -->\nold\n<!-- end cells -->\nbelow\n")
    for _ in range(2):
        assert cli.main(["pages", "--store", str(tmp_path), str(file)]) == 0
        assert file.read_text() == (
            f"above\n<!-- begin cells -->\n\nof {tmp_path.name}\n\n<!-- end cells -->\nbelow\n"
        )
    assert read_block(file, "cells") == f"of {tmp_path.name}"
    assert capsys.readouterr().out.count(f"wrote {file}") == 2


def test_a_page_without_blocks_is_left_alone(page, tmp_path):
    file = page("text")
    assert write_blocks([file], Store(tmp_path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin cells -->\n", "needs the lines"),
        ("<!-- begin cells -->\n<!-- begin cells -->\n<!-- end cells -->\n", "needs the lines"),
        ("<!-- begin other -->\n<!-- end other -->\n", "is not a block; use cells"),
    ],
)
def test_broken_marks_change_nothing(page, tmp_path, text, message):
    file = page(text)
    with pytest.raises(ToPiError, match=message):
        write_blocks([file], Store(tmp_path))
    assert file.read_text() == text
