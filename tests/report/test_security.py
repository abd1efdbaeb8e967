"""Stores, manifests and data from strangers are data: nothing in them is executed, or escapes."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from topi.errors import ToPiError
from topi.results import Store

ROOT = Path(__file__).resolve().parents[2]
RESTRICTED = ROOT / "src" / "topi" / "evaluation" / "lpips_weights.py"
"""Reads one file, checked by its hash, with an unpickler that knows three names."""
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
    found = [line for path in sources() if path != RESTRICTED for line in unsafe(path)]
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
            row["instruction"] = HOSTILE
        (cell / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest = json.loads((cell / "manifest.json").read_text())
        manifest["model"] = manifest["device"]["name"] = HOSTILE
        manifest["label"] += HOSTILE
        (cell / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_the_page_escapes_what_a_data_set_says(hostile, tmp_path):
    from topi.report import build

    build(hostile, tmp_path / "report")
    pages = list((tmp_path / "report").rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;" in text


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
    from topi.work import config_of

    cell = Store(store_root).load_cells()[0]
    hostile = {"_target_": "os.system", "command": "true"}
    for config in (None, [], {"model": hostile}, {"store": "/elsewhere", "evil": 1}):
        cell.__dict__["manifest"] = cell.manifest | {"config": config}
        with pytest.raises(ToPiError):
            config_of(cell)
