"""The rules of the house a machine can check: style, no addresses, which way imports point."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "topi"

# From the bottom up: a room imports only rooms before it. `methods` ends the library.
LIBRARY = ["errors", "models", "engine", "methods"]
ROOMS = ["io", "config", "data", "results", "tracking", "editors", "runs", "report", "speed"]
ROOMS += ["studies", "standins", "cli"]
FLOORS = [*LIBRARY, *(f"bench.{room}" for room in ROOMS)]
# These must start without torch, on a laptop that only reads a store.
LIGHT = ["bench.results", "bench.report"]
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "lightning", "lpips", "torchmetrics"}
BENCH_ONLY = {"hydra", "omegaconf", "wandb", "lightning", "pandas", "matplotlib", "seaborn"}
BENCH_ONLY |= {"rich", "typer", "pyarrow", "torchmetrics", "lpips", "pymoo", "pydantic", "jinja2"}

FILE_LINES, FUNCTION_LINES = 350, 60
# What is longer today. Nothing joins these lists, and what has become short leaves them.
LONG_FILES = {
    "src/topi/methods/rivals/sdtm.py",
    "tests/bench/data/test_anyedit.py",
    "tests/bench/runs/test_faults.py",
    "tests/engine/test_attaching.py",
    "tests/engine/test_session.py",
    "tests/methods/test_sdtm.py",
    "tests/methods/test_topi.py",
}
LONG_FUNCTIONS = {
    "src/topi/engine/tracker.py: observe",
    "tests/bench/conftest.py: write_store",
    "tests/bench/paper_store.py: write_cell",
}


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


def files_of(room: str) -> list[Path]:
    """The source files of a room such as `engine` or `bench.data`."""
    path = SOURCE / room.replace(".", "/")
    return [*path.rglob("*.py"), *path.parent.glob(f"{path.name}.py")]


def room_of(name: str) -> str:
    """The room of a dotted name of this project: `topi.bench.data.folder` is in `bench.data`."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "bench" else parts[0]


def rooms_imported(room: str) -> set[tuple[str, str]]:
    """`(file, room)` for every other room that `room` imports, also inside functions."""
    return {
        (str(path.relative_to(SOURCE)), room_of(name))
        for path in files_of(room)
        for name in imports(path)
        if name.startswith("topi.") and room_of(name) != room
    }


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_library_passes_the_type_checker():
    """What is checked, and what not yet, stands in pyproject.toml."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python_files() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py"]


def functions(path: Path) -> dict[str, int]:
    """The lines of every function of a file, decorators included; one name's longest counts."""
    lines = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines[node.name] = max(lines.get(node.name, 0), node.end_lineno - first + 1)
    return lines


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT))
        for path in python_files()
        if len(path.read_text().splitlines()) > FILE_LINES
    }
    assert long == LONG_FILES


def test_no_function_is_long():
    long = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files()
        for name, count in functions(path).items()
        if count > FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS


@pytest.mark.parametrize("room", FLOORS)
def test_imports_point_down(room):
    below = set(FLOORS[: FLOORS.index(room)])
    assert not {(file, other) for file, other in rooms_imported(room) if other not in below}


def test_every_module_is_in_a_room():
    rooms = {path for room in FLOORS for path in files_of(room)}
    rest = {str(path.relative_to(SOURCE)) for path in {*SOURCE.rglob("*.py")} - rooms}
    assert rest == {"__init__.py", "__main__.py", "bench/__init__.py"}


@pytest.mark.parametrize("room", LIBRARY)
def test_the_library_needs_nothing_of_the_bench(room):
    third_party = {name.split(".")[0] for path in files_of(room) for name in imports(path)}
    assert not third_party & BENCH_ONLY


@pytest.mark.parametrize("room", LIGHT)
def test_reading_results_needs_no_model(room):
    assert not {name for _, name in rooms_imported(room)} & {"models", "engine", "methods"}
    third_party = {name.split(".")[0] for path in files_of(room) for name in imports(path)}
    assert not third_party & HEAVY


def test_no_two_files_have_one_name():
    names = [p.name for p in SOURCE.rglob("*.py") if p.stem not in ("__init__", "__main__")]
    assert not {name for name in names if names.count(name) > 1}


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


def test_no_docstring_is_a_question():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            assert not (text or "").split("\n")[0].endswith("?"), f"{path}: {text}"
