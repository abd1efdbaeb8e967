"""Quality and speed over the number of references; `experiment=references`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "references")
