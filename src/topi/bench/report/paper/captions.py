"""Titles and captions of the paper's figures."""

from __future__ import annotations

from topi.bench.report.paper import ours, overview
from topi.bench.report.paper import several_references as references

CAPTIONS = {
    "fig1": (
        "Figure 1. Attention to the reference, layer by layer",
        "Mean over steps, by category; grey columns are the representative layers.",
    ),
    "fig2": (
        "Figure 2. How relevant single tokens are over the steps",
        "Bottom: rank correlation of the tokens with the first step.",
    ),
    "fig3": (
        "Figure 3. Total attention to the reference over the steps",
        "By task, with the number of samples n. Bands hold 80 % of the samples, where there are at "
        "least three. The dotted line is the paper's bound.",
    ),
    "table1_curves": (
        "Quality over speed",
        "PSNR to full over FLOP-ideal and measured speed-up, all categories pooled. Dashed: merged "
        "in every step, and the checkerboard flipped at anchors.",
    ),
    "fig5": (
        "Figure 5. ToMeSD, ToMA and ToPi",
        "One sample of each category; below an output, its PSNR to the full-context one.",
    ),
    "fig6": (
        "Figure 6. ToPi with TeaCache",
        "Each alone and both; speed-ups over full are measured unless they say ideal. Kept: the "
        "share of reference tokens over the transformer calls that were computed; skipped calls do "
        "not count.",
    ),
    "fig7": (
        "Figure 7. The tokens kept at each anchor",
        "Gold: kept at τ=0.85; dark: dropped. t counts down to 1, as in the paper.",
    ),
    "fig9": (
        "Figure 9. Several references",
        "What ToPi kept of all references at the first and the last anchor.",
    ),
    "fig10": (
        "Figure 10. The threshold τ",
        "The same edits from τ=1, which is full context, to 0.7.",
    ),
    "fig10_curve": (
        "Figure 10 in numbers",
        "Means over samples with 95 % intervals; ∞: every output equals the full one.",
    ),
    "fig11": (
        "Figure 11. The mask renewed every ten steps, or drawn once",
        "Half of the tokens; bars are 95 % intervals of the means, Δ is the paired difference "
        "over all samples.",
    ),
    "pareto": (
        "Every method: quality over speed",
        "PSNR to full over FLOP-ideal and measured speed-up, all categories pooled; bars are 95 % "
        "intervals. ToPi is black; grey rings: settings that no other one beats in both.",
    ),
    "pareto_categories": (
        "Every method: quality over speed, by category",
        "PSNR to full over the measured speed-up, the FLOP-ideal one where not all was timed. ToPi "
        "is black; grey rings: settings that no other one beats in both.",
    ),
    ours.EQUAL_COUNT: (ours.TITLE, ours.CAPTION),
    references.NAME: (references.TITLE, references.CAPTION),
    overview.NAME: (overview.TITLE, overview.CAPTION),
}
"""Figure -> its title and caption."""
