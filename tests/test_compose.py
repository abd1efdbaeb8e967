"""Overrides that Hydra cannot read."""

import shlex

import pytest

from topi.bench.cli import main as cli
from topi.bench.config.compose import composed
from topi.bench.config.schema import ConfigError


@pytest.mark.parametrize(
    "text", ["Büro", "日本/a b", "a=b", "a#b", "{a}", "a(b", "[", "it's", 'a"b', "a;\\", "a!b & c"]
)
def test_what_hydra_cannot_read_is_told_with_quotes_that_it_can(text):
    with pytest.raises(ConfigError, match="cannot be read: text with") as refused:
        composed(["data=folder", f"data.path={text}"])
    quoted = str(refused.value).partition("is quoted: ")[2].removesuffix(".")
    (override,) = shlex.split(quoted)
    assert composed(["data=folder", override]).data.path == text


def test_every_command_that_takes_overrides_says_what_to_quote(capsys):
    commands = ["calibrate", "probe", "fit-cache", "search", "bench", "predict", "plan"]
    for command in (*commands, "tune --speed 2"):
        assert cli.main([*command.split(), "model=ü"]) == 1
        assert "is quoted: 'model=\"ü\"'" in capsys.readouterr().err
