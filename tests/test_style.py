"""The rules of the house a machine can check: style, no addresses, which way imports point."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "topi"

# Left to right, as data flows. A package imports only packages to its left.
FLOW = [
    "errors",
    "escape",
    "names",
    "pictures",
    "config",
    "data",
    "models",
    "engine",
    "methods",
    "results",
    "evaluation",
    "report",
]
# These must start without torch, on a laptop that only reads a store.
LIGHT = {
    "results": {"errors", "names"},
    "report": {"errors", "escape", "names", "pictures", "results"},
}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "lightning", "lpips", "torchmetrics"}


def project_files() -> list[Path]:
    """What git tracks, and what it would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def imports(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_imports(package: str) -> set[tuple[str, str]]:
    """`(file, package)` for every package of the project that `package` imports."""
    files = [*(SOURCE / package).rglob("*.py"), *SOURCE.glob(f"{package}.py")]
    return {
        (str(path.relative_to(SOURCE)), name.split(".")[1])
        for path in files
        for name in imports(path)
        if name.startswith("topi.")
    } - {(str(path.relative_to(SOURCE)), package) for path in files}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", FLOW)
def test_imports_point_left(package):
    left = set(FLOW[: FLOW.index(package)])
    wrong = {(file, name) for file, name in package_imports(package) if name not in left}
    assert not wrong


@pytest.mark.parametrize("package", LIGHT)
def test_reading_results_needs_no_model(package):
    assert {name for _, name in package_imports(package)} <= LIGHT[package]
    third_party = {n.split(".")[0] for p in (SOURCE / package).rglob("*.py") for n in imports(p)}
    assert not third_party & HEAVY


def test_no_file_knows_a_machine_or_a_registry():
    patterns = [
        r"/work/\w",
        r"/root/\w",
        r"/home/\w",
        r"/Users/\w",
        r"python" + r"hosted",
        r"/simple/",
    ]
    patterns += [r"--" + r"(extra-)?index-url", r"--" + r"find-links"]
    wrong = []
    for path in project_files():
        if path in (Path(__file__), ROOT / "LICENSE"):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)}: {p}" for p in patterns if re.search(p, text)]
    assert not wrong


def test_the_lock_has_hashes_and_no_addresses():
    lock = (ROOT / "requirements.txt").read_text()
    assert "://" not in lock
    assert lock.count("==") == len(re.findall(r"==\S+ \\\n    --hash=sha256:", lock))


def test_every_direct_dependency_is_pinned_to_what_the_lock_has():
    lock = (ROOT / "requirements.txt").read_text()
    files = [ROOT / "requirements.in", ROOT / "requirements-dev.in"]
    wanted = [line.split("#")[0].strip() for file in files for line in file.open()]
    wanted.remove("-r requirements.in")
    for requirement in filter(None, wanted):
        assert f"{requirement} \\\n" in lock, requirement


def test_every_module_says_what_it_is_for():
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
