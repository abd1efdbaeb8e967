"""Quality with as many tokens kept; `experiment=equal_count`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("equal_count",), tables=("equal_count", "equal_speed"))
