"""Table 4: dropped tokens left out, or averaged into kept ones; cells of `experiment=table4`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, tables=("table4",))
