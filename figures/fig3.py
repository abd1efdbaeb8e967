"""Figure 3: attention to references by step and task; from `topi probe`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig3",))
