"""The page in a browser, at the width of a desk and of a phone."""

import html
import json
import re
import shutil
import subprocess

import matplotlib
import pytest

matplotlib.use("Agg")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
CATEGORIES = {"Camera move", "Global edit", "Implicit change", "Local edit", "All categories"}
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")

# In a frame, as a window of Chromium is never narrower than 500 pixels.
FRAME = """<body><iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>
<script>onmessage = e => document.body.dataset.found = JSON.stringify(e.data)</script>"""
LOOK = """<script>
const problems = [];
addEventListener("error", e => problems.push(e.message));
addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll("tr[data-category]")]
    .filter(row => row.offsetParent !== null);
  const found = {wide: document.documentElement.scrollWidth - document.documentElement.clientWidth};
  found.all = shown().length;
  const set = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("input"));
  };
  set("by-category", "Local edit");
  found.categories = [...new Set(shown().map(row => row.dataset.category))];
  set("by-method", "TOMA");
  found.methods = [...new Set(shown().map(row => row.dataset.method))];
  set("by-category", "");
  set("by-method", "");
  found.again = shown().length;
  const heading = [...document.querySelectorAll("th.sortable")].find(th => th.offsetParent
    && th.textContent.startsWith("PSNR"));
  const column = () => [...heading.closest("table").tBodies[0].rows]
    .map(row => parseFloat(row.cells[heading.cellIndex].textContent)).filter(n => !isNaN(n));
  heading.click();
  found.down = column();
  heading.click();
  found.up = column();
  set("by-model", "qwen_standin");
  const models = [...document.querySelectorAll("figure[data-model]")];
  found.figures = models.filter(f => f.offsetParent).length;
  set("by-model", "kontext_standin");
  found.ours = models.filter(f => f.offsetParent).length;
  set("by-model", "");
  const words = table => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());
  found.sorted = ["table.claims", "table.pairs"].map(name => {
    const table = document.querySelector(name);
    table.rows[0].cells[0].click();
    const down = words(table);
    table.rows[0].cells[0].click();
    return [down, words(table)];
  });
  found.aligned = [...document.querySelectorAll("td.name")].map(e => getComputedStyle(e).textAlign);
  const table1 = document.querySelector("#tables details[open] .scroll");
  found.beyond = table1.scrollWidth - table1.clientWidth;
  found.early = table1.querySelectorAll("th")[2].getBoundingClientRect().right;
  found.broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
  found.problems = problems;
  parent.postMessage(found, "*");
});
</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works(paper_page, tmp_path, width):
    (tmp_path / "page.html").write_text(
        paper_page.read_text().replace("<head>", "<head>" + LOOK, 1)
    )
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    said = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1400,1000", "--dump-dom", (tmp_path / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', said)[1]))
    assert found["wide"] <= 0  # nothing sticks out to the side
    assert found["all"] == found["again"] > 10
    assert set(found["categories"]) & CATEGORIES == {"Local edit"}  # other rows have none
    assert found["methods"]
    assert all("toma" in name.lower() for name in found["methods"])
    assert len(found["down"]) > 3
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["up"])
    assert (found["figures"], found["ours"]) == (0, 3)  # Figures 1 to 3 are of one model
    for down, up in found["sorted"]:
        assert len(down) > 5 and up != down and sorted(down) == sorted(up)
    assert set(found["aligned"]) == {"left"}
    assert found["early"] < width  # the third column, Kept, is in sight
    assert width < 1280 or found["beyond"] <= 0  # and all of Table 1 is on a desk
    assert found["broken"] == 0
    assert found["problems"] == []
