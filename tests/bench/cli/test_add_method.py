"""`topi add-method`: what it writes passes its tests, and nothing is overwritten."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from topi import methods
from topi.bench.cli import main as cli
from topi.bench.cli.add_method import WRITES, add_method
from topi.errors import ToPiError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path):
    """The folders of a checkout, and the fixtures of its tests."""
    for where in WRITES.values():
        (tmp_path / where).parent.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    return tmp_path


def test_the_new_method_passes_its_tests(checkout, monkeypatch):
    code, config, test = add_method("my_method2", checkout)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(code.parent)])
    monkeypatch.setitem(sys.modules, "topi.methods.my_method2", None)
    del sys.modules["topi.methods.my_method2"]
    cls = import_module("topi.methods.my_method2").MyMethod2
    monkeypatch.setattr(methods, "METHODS", methods.METHODS | {"my_method2": cls})
    arguments = [str(test), "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    assert pytest.main([*arguments, f"--rootdir={checkout}", "-o", "addopts="]) == 0
    given = OmegaConf.load(config)
    assert given.pop("name") == "my_method2"
    assert set(given) == set(cls().params)


def test_what_is_written_is_in_style(checkout):
    written = add_method("a_very_long_name_of_a_method", checkout)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    ours = ["--config", "lint.isort.known-first-party=['topi']"]  # most of it is not there
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *ours, *map(str, written[::2])]
        done = subprocess.run(ruff, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Foo", "'Foo' is not a valid method name"),
        ("../foo", "not a valid method name"),
        ("a__b", "not a valid method name"),
        ("class", "not a valid method name"),
        ("topi", "'topi' is already in use"),
        ("teacache", "'teacache' is already in use"),
        ("pruner", "'pruner' is already in use"),
    ],
)
def test_names_that_are_refused(checkout, name, message):
    with pytest.raises(ToPiError, match=re.escape(message)):
        add_method(name, checkout)
    assert not list(checkout.rglob("*.yaml"))


def test_nothing_is_overwritten(checkout):
    mine = checkout / "tests" / "methods" / "test_foo.py"
    mine.write_text("mine")
    with pytest.raises(ToPiError, match=r"tests/methods/test_foo\.py exists already"):
        add_method("foo", checkout)
    assert mine.read_text() == "mine" and not list(checkout.rglob("*.yaml"))
    with pytest.raises(ToPiError, match="is not a checkout"):
        add_method("foo", checkout / "conf")


def test_from_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "topi.bench.cli.add_method.add_method", lambda name: [tmp_path / f"{name}.py"]
    )
    assert cli.main(["add-method", "foo"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {tmp_path / 'foo.py'}"
    monkeypatch.undo()
    assert cli.main(["add-method", "topi"]) == 1
    assert capsys.readouterr().err.startswith("topi: 'topi' is already in use")
