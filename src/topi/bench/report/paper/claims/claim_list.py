"""What the paper claims, claim by claim, and what decides it."""

from __future__ import annotations

from topi.bench.report.paper.claims import attention_judges as attention
from topi.bench.report.paper.claims import judges
from topi.bench.report.paper.claims.attention_judges import STEADY
from topi.bench.report.paper.claims.evidence import Claim
from topi.bench.report.paper.claims.judges import MUCH
from topi.bench.results.calibration_file import CONCENTRATED

CLAIMS = (
    Claim(
        "attention-in-few-layers",
        "Attention to the reference concentrates in a sparse subset of layers.",
        "section 3.2, Figure 1",
        "The three layers with the most attention have, on average, at least "
        f"{CONCENTRATED:g} times as much as the median of the other layers.",
        attention.concentration,
    ),
    Claim(
        "same-layers-across-tasks",
        "The layers are the same whatever the task.",
        "section 3.2, appendix C.3",
        "Of the three layers with the most attention in a sample, at least two are among the three "
        "of the other categories.",
        attention.same_layers,
    ),
    Claim(
        "relevance-fluctuates",
        "The relative importance of individual tokens shifts throughout the generation.",
        "section 3.2, Figure 2",
        f"Tokens ranked at the last step correlate with the first by less than {STEADY:g}.",
        attention.fluctuation,
    ),
    Claim(
        "attention-decays",
        "The total attention to the reference decays over the steps.",
        "section 3.2, Figure 3",
        "The mean over the first quarter of the steps exceeds that over the last.",
        attention.decay,
    ),
    Claim(
        "attention-below-0.3",
        "The total attention to the reference stays below 0.3.",
        "section 3.2, Figure 3",
        "The highest total over the steps of a run, mean over samples, is below 0.3.",
        attention.low_mass,
        "Equation 4 as printed normalises over reference tokens alone, where the total is always "
        "one; the figure and this test normalise over all tokens.",
    ),
    Claim(
        "task-order",
        "Resizing sustains attention to the reference, a change of style lets it decline rapidly.",
        "section 3.2, Figure 3",
        "Resize has more attention in the last quarter than style change, and more of its own "
        "early attention left.",
        attention.task_order,
    ),
    Claim(
        "best-quality",
        "ToPi beats every baseline in every category in PSNR, SSIM and LPIPS.",
        "section 5.2.2, Table 1",
        "Paired differences to each baseline at its default setting, per metric and category.",
        judges.best_quality,
        "The paper never says at which ratio its baselines ran. Its text compares 25.01 dB with "
        "21.24 (ToMeSD*), while its best baseline there is ToMA* with 21.99.",
    ),
    Claim(
        "best-speed",
        "ToPi is faster than every baseline in every category.",
        "section 5.2.2, Table 1",
        "Differences in speed-up over full: measured (all categories) and by counted FLOPs (each).",
        judges.best_speed,
        "The paper's speed of ToMA* is beyond what its released schedule reaches at any ratio.",
    ),
    Claim(
        "better-at-equal-speed",
        "ToPi has the better frontier of quality over latency.",
        "section 5.2.2",
        "PSNR at equal FLOP-ideal speed-up, each curve interpolated sample by sample.",
        judges.frontier,
    ),
    Claim(
        "over-30-percent",
        "ToPi speeds inference up by over 30 %.",
        "abstract",
        "The speed-up at tau 0.85, measured and by counted FLOPs, minus 1.30.",
        judges.over_thirty_percent,
        "In Table 1 only Qwen-Image-Edit exceeds it, on camera moves (1.31) and global edits "
        "(1.33); FLUX.1 Kontext reaches 1.26 at most.",
    ),
    Claim(
        "layer-order",
        "Representative layers match or exceed all layers, which beat random ones, which beat the "
        "last three.",
        "section 5.4, Tables 2 and 5",
        "Paired differences at half of the tokens; random is the mean of five draws. Equal: within "
        "0.25 dB, 0.005 SSIM, 0.005 LPIPS.",
        judges.layer_order,
        "In the paper's own Table 2 random layers beat all layers in LPIPS on camera moves (0.112 "
        "to 0.113) and implicit changes (0.090 to 0.091), and first beats random in PSNR thrice.",
    ),
    Claim(
        "score-order",
        "Influence matches or exceeds attention alone, and similarity is far behind.",
        "section 5.4, Table 3",
        f"Paired differences at half of the tokens; far behind: by more than {MUCH:g} dB. Equal: "
        "as in layer-order.",
        judges.score_order,
    ),
    Claim(
        "selection-beats-chance",
        "The selection mechanism is what makes the difference.",
        "section 5.2.2; the paper has no control, this one is ours",
        "Paired differences to keeping random tokens, at half of the tokens.",
        judges.against_random,
    ),
    Claim(
        "prune-over-merge",
        "Pruning is better than merging dropped tokens into kept ones.",
        "appendix E.2, Table 4",
        "Paired differences at half of the tokens, per metric and category.",
        judges.prune_over_merge,
    ),
    Claim(
        "dynamic-over-static",
        "Renewing the mask beats drawing it once, in all metrics.",
        "appendix E.4, Figure 11",
        "Paired differences at half of the tokens, all categories pooled.",
        judges.dynamic_over_static,
    ),
    Claim(
        "small-overhead",
        "Scoring and selection add less than 1 % to the run time.",
        "appendix F.4, Table 7",
        "Their share in the timed runs at tau 0.85.",
        judges.small_overhead,
        "The paper's ratios do not follow from its seconds: 0.147 of 27.853 is 0.53 %, not 0.50 %.",
    ),
    Claim(
        "flops-by-formula",
        "By its formulas, keeping half of the reference tokens saves 28.2 % of the FLOPs of a "
        "layer of FLUX and 27.3 % of a layer of Qwen.",
        "appendix F.3, Table 6",
        "Its formulas with its numbers (d = 4096), to the printed digit.",
        judges.flops_by_formula,
        arithmetic=True,
    ),
    Claim(
        "flops-of-the-models",
        "Keeping half of the reference tokens saves 28.2 % of the FLOPs of a layer of FLUX and "
        "27.3 % of a layer of Qwen.",
        "appendix F.3, Table 6",
        "The layers of the published configurations, counted on the meta device.",
        judges.flops_of_layers,
        arithmetic=True,
    ),
    Claim(
        "orthogonal-to-teacache",
        "ToPi and TeaCache add up.",
        "section 5.3, Figure 6",
        "Both together are faster than each alone, and reach 90 % of the product of the speed-ups.",
        judges.with_teacache,
    ),
    Claim(
        "2.34-with-teacache",
        "Together with TeaCache the speed-up is 2.34×.",
        "section 5.3",
        "The measured speed-up minus 2.34.",
        judges.teacache_speed,
        "The paper gives neither the model nor TeaCache's threshold.",
    ),
    Claim(
        "near-lossless",
        "High fidelity even at tau 0.8.",
        "appendix E.1, Figure 10",
        "At tau 0.8, PSNR to full is at least 30 dB and LPIPS at most 0.05. The bounds are ours.",
        judges.near_lossless,
        "By these bounds the paper's own Table 1, at tau 0.85, is not: 21.04 to 29.40 dB.",
    ),
    Claim(
        "several-references",
        "On par with full context when there are several references.",
        "appendix D.2, Figure 9",
        "The bounds of near-lossless, at tau 0.85.",
        judges.several_references,
        several=True,
    ),
    Claim(
        "kept-set-shrinks",
        "The set of kept tokens becomes sparser over the steps.",
        "appendix A, Figure 7",
        "Share of tokens kept at the first anchor minus that at the last, sample by sample.",
        judges.shrinking,
    ),
)
