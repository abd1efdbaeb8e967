"""Figure 6: ToPi with TeaCache; cells of `experiment=fig6`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig6")
