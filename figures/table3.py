"""Table 3: what scores the tokens; cells of `experiment=table3`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table3",))
