"""Table 2: from which layers the score is taken; cells of `experiment=table2`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table2",))
