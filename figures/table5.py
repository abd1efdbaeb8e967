"""Table 5: more on the layers; cells of `experiment=table5`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table5",))
