"""Table 7: what scoring and selection take beside the model; cells of `experiment=table7`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table7",))
