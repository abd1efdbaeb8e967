"""The figure of a stand-in's learning curves."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from topi.bench.data import CATEGORIES

FURTHER = ("other_shape", "two_references")  # batches for validation
SMOOTH = 10  # logged values in the running mean of the loss


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Loss and held-out PSNR over all steps of all runs; lines mark where a phase begins."""
    phases = curves.groupby(["run", "phase"], sort=False)
    ends = phases["step"].max().cumsum()
    starts = dict(zip(ends.index, [0, *ends.iloc[:-1]], strict=True))
    at = curves["step"] + [starts[key] for key in zip(curves["run"], curves["phase"], strict=True)]
    with plt.style.context("seaborn-v0_8-whitegrid"):
        figure, (loss, psnr) = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained")
        smooth = phases["v_mse"].transform(lambda v: v.dropna().rolling(SMOOTH, 1).mean())
        loss.plot(at, smooth, color="black", linewidth=0.8)
        loss.set(xlabel="step", ylabel=f"velocity MSE (mean of {SMOOTH})", yscale="log")
        shown = [name for name in (*CATEGORIES, *FURTHER) if f"psnr_{name}" in curves]
        for name, colour in zip(shown, sns.color_palette("colorblind"), strict=False):
            column = curves[f"psnr_{name}"]
            seen, label = column.notna(), name.replace("_", " ")
            psnr.plot(at[seen], column[seen], "o-", ms=3, c=colour, label=label)
        psnr.set(xlabel="step", ylabel="PSNR to the true edit (dB)")
        psnr.legend(fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        for axis in (loss, psnr):
            for start in list(starts.values())[1:]:
                axis.axvline(start, color="grey", linewidth=0.6, linestyle=":")
        figure.savefig(path, dpi=150)
        plt.close(figure)
