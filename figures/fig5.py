"""Figure 5: ToMeSD, ToMA and ToPi beside the full context; cells of `experiment=fig5`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig5")
