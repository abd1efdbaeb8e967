"""The documentation: short front page, links that resolve both ways, every method named."""

import re
from pathlib import Path

import pytest

from topi.methods import CACHES, METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [ROOT / "slurm" / "README.md", *sorted((ROOT / "experiments").glob("**/README.md"))]


def anchors(page):
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text())


@pytest.mark.parametrize(
    "page", [*PAGES, *DOCS, *GUIDES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_resolve(page):
    for link in links(page):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_index_lists_every_page_and_every_page_links_back():
    index = ROOT / "docs" / "README.md"
    others = {page.name for page in DOCS} - {index.name}
    assert others <= set(links(index))
    for name in others:
        assert index.name in links(ROOT / "docs" / name)


def test_every_method_and_cache_is_described():
    catalogue = (ROOT / "docs" / "methods.md").read_text()
    front = (ROOT / "README.md").read_text()
    for name in (*METHODS, *CACHES):
        assert f"`{name}`" in catalogue
        assert f"`{name}`" in front or f"`{name.removesuffix('_ref')}`" in front
