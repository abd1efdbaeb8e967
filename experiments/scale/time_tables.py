"""Seconds that tables and claims of a store take: python experiments/scale/time_tables.py STORE"""

import sys
import time

from topi.bench.report.page.page import contents
from topi.bench.report.paper.build import CLAIMS, build_tables
from topi.bench.report.paper.claims.evidence import gather_evidence, judge_all
from topi.bench.report.paper.suite import suites
from topi.bench.results import Store


def main(root: str) -> None:
    """Build them and throw them away; imports are not in the seconds."""
    store, start = Store(root), time.perf_counter()
    tables = list(build_tables(suites(store)))
    paper = time.perf_counter()
    judge_all(CLAIMS, gather_evidence(store))
    claims = time.perf_counter()
    models = list(contents(store, [cell for cell in store.load_cells() if cell.done]))
    end = time.perf_counter()
    print(f"{len(tables)} tables of the paper {paper - start:.1f} s, claims {claims - paper:.1f} s")
    print(f"{len(models)} tables of the models {end - claims:.1f} s, in all {end - start:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1])
