"""Stores, manifests and data from strangers are data: nothing in them is executed, or escapes."""

import ast
import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from topi.bench.cli import main as cli
from topi.bench.results import Store
from topi.errors import ToPiError

ROOT = Path(__file__).resolve().parents[3]
FORBIDDEN = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "marshal.loads",
    "dill.load",
    "dill.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "os.system",
    "hydra.utils.instantiate",
    "instantiate",
}
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
HOSTILE += "[/x]\x1b[31m\x1b]0;a\x07 $9.99 and $5 | a\n| \\input{x} \\end{tabular} % # & =1"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def sources():
    own = [*ROOT.joinpath("src").rglob("*.py"), *ROOT.glob("*.py")]
    return own + [
        path for name in ("figures", "notebooks") for path in ROOT.glob(f"{name}/**/*.py")
    ]


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            yield ast.unparse(node.func), options, node.lineno


def unsafe(path):
    for name, options, line in calls(path):
        if name in FORBIDDEN:
            yield f"{path.name}:{line} {name}"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{path.name}:{line} torch.load without weights_only=True"
        if name.endswith(".load") and options.get("allow_pickle") == "True":
            yield f"{path.name}:{line} allow_pickle"
        if "shell" in options:
            yield f"{path.name}:{line} a shell"


def test_nothing_is_unpickled_or_evaluated():
    found = [line for path in sources() for line in unsafe(path)]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_test_above_would_see_it(tmp_path, code):
    path = tmp_path / "a.py"
    path.write_text(code)
    assert list(unsafe(path))


@pytest.fixture
def hostile(tmp_path, store_root):
    """A store whose texts are hostile."""
    root = tmp_path / "store"
    shutil.copytree(store_root, root)
    for cell in root.glob("cells/*"):
        rows = [json.loads(line) for line in (cell / "rows.jsonl").read_text().splitlines()]
        for row in rows:
            row["instruction"], row["skipped_calls"] = HOSTILE, 0
        (cell / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest = json.loads((cell / "manifest.json").read_text())
        manifest["model"] = manifest["data"] = manifest["device"]["name"] = HOSTILE
        manifest["full"]["model"]["kind"] = "kontext"
        manifest["label"] = f"=1+1 {manifest['label']} {HOSTILE}"
        (cell / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_every_output_escapes_what_a_data_set_says(hostile, tmp_path, capsys):
    for command in ("status", "leaderboard", "compare --against nothing", "report"):
        name, *options = command.split()
        options += ["--out", str(tmp_path / "report")] * (name == "report")
        refused = name == "compare"  # no such label: the answer names those that there are
        assert cli.main([name, "--store", str(hostile), *options]) == refused
        told = capsys.readouterr()
        assert not CONTROL.search(told.out + told.err)
        assert "\\x1b" in told.out + told.err
    label = next(cell.labels[0] for cell in Store(hostile).load_cells())
    assert cli.main(["compare", "--store", str(hostile), "--against", label]) == 0
    assert all(
        line[:1] in ("", "|") or line[-1] == ":" for line in capsys.readouterr().out.split("\n")
    )
    kinds = (".html", ".md", ".tex", ".csv", ".json")
    written = [path for path in (tmp_path / "report").rglob("*") if path.suffix in kinds]
    assert {path.suffix for path in written} == {*kinds}
    files = {path: path.read_text() for path in written}
    for path, text in files.items():
        assert not CONTROL.search(text), path
        if path.suffix in (".html", ".md"):
            assert not re.search("<script>alert|<img src=x", text), path
        if path.suffix == ".html":
            assert "&lt;script&gt;" in text
        if path.suffix == ".tex":
            text = re.sub("^%.*", "", text, flags=re.MULTILINE)
            assert "\\input{" not in text
            assert text.count("\\begin{tabular}") == text.count("\\end{tabular}")
        if path.suffix == ".csv":
            fields = [field for line in csv.reader(text.splitlines(True)) for field in line]
            assert not [field for field in fields if field.startswith("=")]
    assert any(path.suffix == ".csv" and "'=1+1" in text for path, text in files.items())


@pytest.mark.parametrize(
    ("where", "value"),
    [("full_key", "../../../etc"), ("full_key", "/etc"), ("full_key", ["x"])],
)
def test_a_manifest_names_no_folder_outside(store_root, tmp_path, where, value):
    root = tmp_path / "store"
    shutil.copytree(store_root, root)
    store = Store(root)
    cell = store.load_cells()[0]
    path = cell.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {where: value}))
    with pytest.raises(ToPiError, match=f"field {where}: "):
        store.full(store.cell(cell.key).manifest[where])


def test_a_manifest_is_checked_like_a_command_line(store_root):
    from topi.bench.runs.work import config_of

    cell = Store(store_root).load_cells()[0]
    hostile = {"_target_": "os.system", "command": "true"}
    for config in (None, [], {"model": hostile}, {"store": "/elsewhere", "evil": 1}):
        cell.__dict__["manifest"] = cell.manifest | {"config": config}
        with pytest.raises(ToPiError):
            config_of(cell)
