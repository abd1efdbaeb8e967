"""Table 1, its curves of quality over speed, and all at equal speed; `experiment=table1`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(
        __doc__,
        figures=("table1_curves",),
        tables=("table1", "table1_curves", "table1_equal_speed"),
    )
