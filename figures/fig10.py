"""Figure 10: the threshold tau, in pictures and in numbers; cells of `experiment=fig10`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig10", "fig10_curve")
