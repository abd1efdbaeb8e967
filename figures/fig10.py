"""Figure 10: the threshold tau, in pictures and in numbers; cells of `experiment=fig10`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig10", "fig10_curve"))
