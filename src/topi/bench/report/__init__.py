"""What a store of results says: tables, figures and one page, each a pure function of the store."""

from topi.bench.report.page.page import build

__all__ = ["build"]
