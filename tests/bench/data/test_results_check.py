"""Results on other samples than today's are not reported."""

import pytest

from topi.bench.data import MiniEdit, MiniEditPlus
from topi.bench.data.results_check import check_result
from topi.errors import ToPiError


def about(data, **config):
    config = {"name": data.name, "split": data.split} | config
    return {"key": "m-full-1", "data": data.fingerprint(), "config": {"data": config}}


def test_results_on_the_frozen_samples_are_taken():
    check_result(about(MiniEdit("evaluation", 64), size=64))
    check_result(about(MiniEdit("calibration", [64, 96]), size=[64, 96]))
    check_result(about(MiniEdit("evaluation", "mixed"), size="mixed"))
    check_result(about(MiniEditPlus("evaluation", 64), size=64))
    check_result(about(MiniEdit("evaluation", 64, references=2), size=64, references=2))


def test_results_on_others_are_refused():
    other = about(MiniEdit("evaluation", 64), size=64) | {"data": "0123456789abcdef"}
    with pytest.raises(ToPiError, match=r"m-full-1 was computed on other samples.*run it again"):
        check_result(other)


def test_other_data_and_old_manifests_have_no_bearing():
    check_result({"key": "x", "data": "1", "config": {"data": {"name": "folder"}}})
    check_result({"key": "x"})
