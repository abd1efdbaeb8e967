"""Figure 11: the mask renewed or drawn once; cells of `experiment=fig11`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig11")
