"""Figure 7: the tokens kept at each anchor; cells of `experiment=fig7`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig7",))
