"""Table 6: FLOPs of one layer, as printed and counted; the store does not matter."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table6",))
