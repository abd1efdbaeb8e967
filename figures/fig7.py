"""Figure 7: the tokens kept at each anchor; cells of `experiment=fig7`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "fig7")
