"""The help of every command, and errors in the arguments."""

import re
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

from topi.bench.cli import main as cli
from topi.bench.cli.artefact_table import ARTEFACTS
from topi.bench.report.paper.build import ATTENTION, FIGURES, OPTIONAL, TABLES


def walk(command, words=()):
    """Every command and group below a command, as the words that call it."""
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*words, name))


COMMANDS = list(walk(get_command(cli.app)))


def parse(words):
    """The innermost command that these words call, and what it is called with; nothing runs."""
    command, path, words = get_command(cli.app), ["topi"], list(words)
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    return path, command.make_context(path[-1], words)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example_that_parses(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1].strip()
    assert last.startswith("Example: topi ")
    example = shlex.split(last.removeprefix("Example: ").partition(" >")[0])
    path, _ = parse(example[1:])
    assert path[: 1 + len(words)] == ["topi", *words]


def test_every_command_has_a_summary_that_is_not_cut_off(capsys):
    cli.main(["--help"])
    listed = capsys.readouterr().out
    assert "..." not in listed.partition("Commands:")[2]
    assert len([words for words in COMMANDS if len(words) == 1]) == 25


def test_help_starts_without_torch_and_pandas():
    code = (
        "import sys; from topi.bench.cli.main import main; main(['--help']); "
        "print({'torch', 'pandas', 'matplotlib', 'hydra'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "missing; choose one of: run, plan, .*status"),
        ("stats", "no command 'stats'; choose one of: .*status"),
        ("data chek", "no command 'chek'; choose one of: check"),
        ("figure fig4", "'fig4' is unknown; choose one of: fig1, .*pareto"),
        ("status --stor x", "--stor .*--store"),
        ("verify", "Missing argument .*`topi verify --help` shows an example"),
        ("work plan.jsonl first", "'first'|integer"),
        ("compare --against a b", "unexpected extra argument"),
    ],
)
def test_errors_in_the_arguments_exit_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("topi: ")
    assert re.search(words, error.replace("\n", " "))


def test_a_label_is_named_once_for_each_against():
    _, context = parse(["compare", "--against", "topi ratio=0.5", "--against", "random"])
    assert context.params["against"] == ["topi ratio=0.5", "random"]


def test_hydra_gets_its_own_options():
    options = ["-m", "tau=0.8,0.9", "--cfg", "job", "-cd", "x", "~size", "--config-name=y"]
    _, context = parse(["run", *options])
    assert context.args == options


def test_every_figure_and_table_of_the_paper_has_a_name():
    figures = {name for artefact in ARTEFACTS.values() for name in artefact.figures}
    tables = {name for artefact in ARTEFACTS.values() for name in artefact.tables}
    assert figures == {*ATTENTION, *FIGURES, *OPTIONAL}
    assert tables == {*TABLES}
    for artefact in ARTEFACTS.values():
        assert parse(artefact.computed_by.split())
