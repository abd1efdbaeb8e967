"""Quality over speed for every method and stack, the Pareto front marked; `experiment=pareto`."""

from topi.report.script import draw_figures

if __name__ == "__main__":
    draw_figures(__doc__, "pareto", "pareto_categories")
