"""Claims: the rule that decides, and the verdicts on a store whose answers are known."""

import json
from math import nan

import pytest

from topi.bench.report.paper.claims.claim_list import CLAIMS
from topi.bench.report.paper.claims.claims_text import (
    claim_models,
    claims_frame,
    claims_markdown,
    read_notes,
    to_rich_claims,
)
from topi.bench.report.paper.claims.evidence import (
    ARITHMETIC,
    Claim,
    Evidence,
    Judged,
    gather_evidence,
    judge_all,
)
from topi.bench.report.paper.claims.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    REPRODUCED,
    UNTESTABLE,
    VERDICTS,
    Comparison,
    Finding,
    decide,
)
from topi.bench.report.paper.printed_values import EXPERIMENTS
from topi.bench.results.statistics import Estimate, unpaired
from topi.bench.results.store import Store

ABOVE, BELOW, ACROSS = (Estimate(v, v - 1, v + 1, 16) for v in (2.0, -2.0, 0.5))
NONE = Estimate(nan, nan, nan, 0)
FEW = Estimate(2.0, 1.0, 3.0, 3)


@pytest.fixture(scope="module")
def judged(paper_root):
    return {j.claim.name: j for j in judge_all(CLAIMS, gather_evidence(Store(paper_root)))}


def verdict(judged, name, model="kontext_standin"):
    return judged[name].findings[model].verdict


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        ([ABOVE, ABOVE], REPRODUCED),
        ([ABOVE, ACROSS], INCONCLUSIVE),
        ([ABOVE, ACROSS, BELOW], CONTRADICTED),
        ([ABOVE, NONE], UNTESTABLE),
        ([NONE, BELOW], CONTRADICTED),
        ([ABOVE, FEW], INCONCLUSIVE),
        ([], UNTESTABLE),
    ],
)
def test_the_rule(estimates, expected):
    assert decide(Comparison("a − b", e) for e in estimates).verdict == expected


def test_a_margin_makes_equal_good_enough():
    slightly = Estimate(-0.1, -0.2, -0.05, 16)
    assert Comparison("a − b", slightly).verdict == CONTRADICTED
    assert Comparison("a − b", slightly, margin=0.25).verdict == REPRODUCED
    assert Comparison("a − b", BELOW, margin=0.25).verdict == CONTRADICTED


def test_a_reversal_must_outlast_the_number_of_comparisons():
    """p 0.023 for one; a headline needs no correction, the only other one of two does."""
    rare = Estimate(-1.0, -1.9, -0.1, 12, error=0.45)
    holds = Comparison("c − d", ABOVE)
    other = Comparison("a − b", rare, headline=False)
    assert other.verdict == CONTRADICTED
    assert decide([other]).verdict == CONTRADICTED
    assert decide([other, holds]).verdict == INCONCLUSIVE
    assert decide([Comparison("a − b", rare), holds]).verdict == CONTRADICTED
    clear = Comparison("a − b", Estimate(-1.0, -1.5, -0.5, 12, error=0.2), headline=False)
    assert decide([clear, holds, holds]).verdict == CONTRADICTED
    generous = Comparison("a − b", clear.estimate, margin=1.0, headline=False)
    assert decide([generous, holds]).verdict == INCONCLUSIVE


EXPECTED = {
    "attention-in-few-layers": REPRODUCED,
    "same-layers-across-tasks": REPRODUCED,
    "relevance-fluctuates": REPRODUCED,
    "attention-decays": REPRODUCED,
    "attention-below-0.3": REPRODUCED,
    "task-order": REPRODUCED,
    "best-quality": REPRODUCED,
    "best-speed": REPRODUCED,
    "better-at-equal-speed": REPRODUCED,
    "over-30-percent": UNTESTABLE,
    "layer-order": REPRODUCED,
    "score-order": REPRODUCED,
    "selection-beats-chance": REPRODUCED,
    "prune-over-merge": REPRODUCED,
    "dynamic-over-static": REPRODUCED,
    "small-overhead": REPRODUCED,
    "orthogonal-to-teacache": CONTRADICTED,  # 2.1 is less than 0.9 * 1.9 * 1.265
    "2.34-with-teacache": UNTESTABLE,
    "near-lossless": CONTRADICTED,  # LPIPS
    "kept-set-shrinks": REPRODUCED,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts_on_the_fixture(judged, name):
    assert verdict(judged, name) == EXPECTED[name]


def test_every_claim_is_judged_where_it_applies(judged):
    assert len(judged) == len(CLAIMS) == len({claim.name for claim in CLAIMS})
    for name, each in judged.items():
        if each.claim.arithmetic:
            models = {ARITHMETIC}
        elif each.claim.several:
            models = {"qwen_plus_standin"}
        else:
            models = {"kontext_standin", "qwen_standin"}
        assert set(each.findings) == models, name
        assert all(finding.verdict in VERDICTS for finding in each.findings.values())
    assert claim_models(judged.values())[-1] == ARITHMETIC  # behind the models
    assert verdict(judged, "flops-by-formula", ARITHMETIC) == REPRODUCED
    assert verdict(judged, "flops-of-the-models", ARITHMETIC) == CONTRADICTED


def test_one_reversed_cell_contradicts_best_quality(tmp_path, write_paper_store, write_cell):
    write_paper_store(tmp_path, models=("kontext_standin",), pictures=0)
    cell = tmp_path / "cells" / "kontext_standin-toma-feed" / "rows.jsonl"
    rows = [json.loads(line) for line in cell.read_text().splitlines()]
    for row in rows:
        if row["category"] == "local_edit":
            row["psnr"] += 20
    cell.write_text("".join(json.dumps(row) + "\n" for row in rows))
    claims = [claim for claim in CLAIMS if claim.name == "best-quality"]
    (each,) = judge_all(claims, gather_evidence(Store(tmp_path)))
    finding = each.findings["kontext_standin"]
    assert finding.verdict == CONTRADICTED
    assert "ToPi − ToMA, PSNR (local edit)" in str(finding.telling[-1])
    reversed_ = [c for c in finding.comparisons if c.verdict == CONTRADICTED]
    assert [c.what for c in reversed_] == ["ToPi − ToMA, PSNR (local edit)"]


def test_without_cells_nothing_is_claimed(tmp_path, write_cell):
    write_cell(tmp_path, "kontext_standin", "toma")
    for each in judge_all(CLAIMS, gather_evidence(Store(tmp_path))):
        for model, finding in each.findings.items():
            if model != ARITHMETIC:
                assert finding.verdict == UNTESTABLE, each.claim.name
                assert finding.reason


def test_curves_with_missing_cells_decide_nothing(tmp_path, write_paper_store):
    write_paper_store(tmp_path, models=("kontext_standin",), pictures=0)
    claims = [claim for claim in CLAIMS if claim.name == "better-at-equal-speed"]
    (each,) = judge_all(claims, gather_evidence(Store(tmp_path)))
    assert each.findings["kontext_standin"].verdict == REPRODUCED
    (tmp_path / "cells" / "kontext_standin-toma-feed" / "complete.json").unlink()
    (each,) = judge_all(claims, gather_evidence(Store(tmp_path)))
    assert each.findings["kontext_standin"].verdict == UNTESTABLE


def test_all_claims_are_about_the_same_weights(tmp_path, write_cell):
    """Two cells of one version outweigh a newer one of another, also where only that has it."""
    old = [write_cell(tmp_path, "kontext_standin", label) for label in ("topi tau=0.85", "toma")]
    new = write_cell(tmp_path, "kontext_standin", "tomesd")
    for cells, weights, created in ((old, "old", "2026-01-01"), ([new], "new", "2026-02-02")):
        for cell in cells:
            about = json.loads((cell / "manifest.json").read_text())
            about["full"]["weights"], about["created"] = weights, created
            (cell / "manifest.json").write_text(json.dumps(about))
    (evidence,) = gather_evidence(Store(tmp_path))
    assert {suite.weights for suite in evidence.suites} == {"old"}
    (run,) = evidence.runs("tomesd")
    assert run.missing == {"tomesd": "missing"}


def test_real_models_can_decide_what_stand_ins_cannot(paper_root):
    (evidence,) = (e for e in gather_evidence(Store(paper_root)) if e.model == "qwen_standin")
    for suite in evidence.suites:
        suite.settings["model"]["source"] = "hub"
    claims = [claim for claim in CLAIMS if claim.name == "2.34-with-teacache"]
    (each,) = judge_all(claims, [Evidence("real", evidence.suites)])
    assert each.findings["real"].verdict == CONTRADICTED


def test_the_page_of_claims_names_cells_and_numbers(judged, tmp_path):
    notes = tmp_path / "findings.csv"
    notes.write_text("claim,finding\nprune-over-merge,Looked at the layers.\n")
    text = claims_markdown(list(judged.values()), notes)
    page = text.index("Claims of the paper and verdicts here")
    assert page < text.index("## attention-in-few-layers")
    assert "Looked into: Looked at the layers." in text
    assert "`kontext_standin-topi-ratio-0.5-dropped-merge-feed`" in text
    assert "prune − merge, PSNR (all): +3.0" in text
    assert read_notes(tmp_path / "none.csv") == {}


def test_the_frame_has_every_comparison(judged):
    frame = claims_frame(judged.values())
    assert set(frame["claim"]) == set(judged)
    quality = frame[(frame["claim"] == "best-quality") & (frame["model"] == "kontext_standin")]
    assert len(quality) == 4 * 3 * 5  # baselines, metrics, categories and all
    assert quality["cells"].str.contains("topi-tau-0.85").all()


def test_unpaired_groups():
    one, other = [3.0, 3.0, 3.0], [1.0, 1.0]
    assert unpaired(one, other) == Estimate(2, 2, 2, 2)
    assert unpaired(one, []).n == 0
    assert unpaired([1, 2, 3], [0, 4]).low < 0 < unpaired([1, 2, 3], [0, 4]).high


def test_what_failed_in_the_committed_results_was_looked_into():
    evidence = gather_evidence(Store(EXPERIMENTS / "results"))
    judged = judge_all([claim for claim in CLAIMS if not claim.arithmetic], evidence)
    verdicts = {each.claim.name: {f.verdict for f in each.findings.values()} for each in judged}
    failed = {name for name, found in verdicts.items() if CONTRADICTED in found}
    assert failed and failed == set(read_notes())


def test_random_weights_prove_nothing(tmp_path, write_cell):
    cell = write_cell(tmp_path, "kontext_standin", "topi tau=0.85")
    about = json.loads((cell / "manifest.json").read_text())
    about["full"]["model"]["source"] = "tiny"
    (cell / "manifest.json").write_text(json.dumps(about))
    assert gather_evidence(Store(tmp_path)) == []


def test_the_console_shows_what_is_decided_and_counts_the_rest():
    def named(name):
        return Claim(name=name, statement="", where="", test="", judge=None)

    decided = Judged(named("sure"), {"tiny": Finding(REPRODUCED)})
    rest = [
        Judged(named("cells"), {"tiny": Finding(UNTESTABLE)}),
        Judged(named("several"), {}),
    ]
    view = to_rich_claims([decided, *rest])
    assert list(view.columns[0].cells) == ["sure"]
    assert view.caption.startswith("2 more")
    assert to_rich_claims([decided]).caption is None
