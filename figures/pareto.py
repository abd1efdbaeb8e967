"""Quality over speed for every method and stack, the Pareto front marked; `experiment=pareto`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("pareto", "pareto_categories"), tables=("leaderboard",))
