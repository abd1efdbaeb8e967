"""The W&B report, serialised without a server, and what is said when there is none."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from wandb_workspaces.reports.v2 import interface

from topi.bench.report import wandb_report
from topi.bench.report.paper.build import Drawn, Paper
from topi.bench.report.paper.claims.evidence import Claim, Judged
from topi.bench.report.paper.claims.verdicts import Finding
from topi.bench.report.tables.text_table import Text, TextTable
from topi.bench.report.wandb_report import groups_of, place
from topi.bench.results.store import Store
from topi.errors import ToPiError


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    project = {"project": {"internalId": "x"}}
    monkeypatch.setattr(interface, "execute_graphql", lambda *a, **k: project)


@pytest.fixture
def paper():
    claim = Claim(name="c", statement="Pruning wins.", where="Table 4", test="Paired.", judge=None)
    table = TextTable(
        "table4",
        "Table 4",
        ("category", "PSNR"),
        ((Text("a"), Text("31.5")),),
        pd.DataFrame(),
        words=1,
    )
    figure = Drawn("fig7", "Figure 7", "Gold: kept.", Path("out/fig7_tiny.png"), wide=True)
    return Paper(
        [Judged(claim, {"tiny": Finding("reproduced")})], [table], [figure], ["No Fig. 9."]
    )


def serialised(report):
    return json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def test_report_says_what_the_page_says_beside_its_runs(paper):
    spec = serialised(wandb_report.wandb_report(paper, ["table4"], "us", "topi"))
    texts = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    assert "Pruning wins." in texts[0] and "reproduced" in texts[0]
    assert "31.5" in texts[1]
    assert "No Fig. 9." in json.dumps(spec)
    figure, runs = [b["metadata"] for b in spec["blocks"] if b["type"] == "panel-grid"]
    (shown,) = figure["panelBankSectionConfig"]["panels"]
    assert shown["config"]["mediaKeys"] == ["figures/fig7_tiny"]
    (filters,) = runs["runSets"][0]["filters"]["filters"]
    assert filters["key"]["name"] == "group" and filters["value"] == "table4"
    assert runs["runSets"][0]["project"]["entityName"] == "us"


@pytest.fixture
def published(paper, monkeypatch, tmp_path, paper_root):
    """What `topi report --wandb` would send to W&B."""
    sent = []
    monkeypatch.setattr(wandb_report, "build_paper", lambda root, out: paper)
    monkeypatch.setattr(wandb_report, "_upload", lambda figures, *place: sent.append(figures))
    monkeypatch.setattr(interface.Report, "save", lambda self: sent.append(serialised(self)))
    monkeypatch.setattr(interface.Report, "url", "https://wandb.example/report")
    return lambda where: (wandb_report.publish(paper_root, tmp_path, where), sent)


def test_publishing_sends_the_figures_and_one_report_with_the_groups_of_the_store(
    published, paper, paper_root
):
    url, (figures, spec) = published("us/topi")
    assert url == "https://wandb.example/report"
    assert figures == paper.figures
    names = [
        runs["name"]
        for block in spec["blocks"]
        if block["type"] == "panel-grid"
        for runs in block["metadata"]["runSets"]
    ]
    assert names == ["report", *groups_of(Store(paper_root))]
    assert len(names) > 1


def test_no_login_is_one_sentence_and_the_local_report_stays(published, monkeypatch, tmp_path):
    def refuse(*_):
        raise RuntimeError("no key")

    monkeypatch.setattr(wandb_report, "_upload", refuse)
    with pytest.raises(ToPiError, match=f"no key.*wandb login.*{tmp_path}"):
        published("us/topi")


def test_without_the_extra_the_report_says_what_to_install(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ToPiError, match="wandb-report"):
        published("us/topi")


@pytest.mark.parametrize("where", ["", "topi", "/topi", "us/", "us/topi/more"])
def test_a_bad_place_is_refused(where):
    with pytest.raises(ToPiError, match="ENTITY/PROJECT"):
        place(where)


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_nothing_is_sent_where_the_environment_forbids_it(published, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ToPiError, match="WANDB_MODE"):
        published("us/topi")
