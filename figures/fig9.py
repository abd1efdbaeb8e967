"""Figure 9: several references; cells of `experiment=fig9`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig9",))
