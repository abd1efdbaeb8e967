"""Figure 9: several references; cells of `experiment=fig9`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig9")
