"""Figure 1: attention to references by layer; from `topi probe`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig1",))
