"""The curves of Table 1, quality over speed; cells of `experiment=table1`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "table1_curves")
