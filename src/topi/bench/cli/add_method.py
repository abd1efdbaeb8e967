"""The files of a new method, from a template that passes its tests: `topi add-method`."""

import keyword
import pkgutil
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from topi.bench.config.schema import conf_folder
from topi.bench.results import files
from topi.errors import ToPiError

TEMPLATES = Path(__file__).with_name("templates")
WRITES = {
    "method.py.j2": "src/topi/methods/{}.py",
    "method.yaml.j2": "conf/method/{}.yaml",
    "test_method.py.j2": "tests/methods/test_{}.py",
}
"""Template -> where it goes in a checkout."""


def add_method(name: str, root: Path | None = None) -> list[Path]:
    """Write a method, its configuration and its test; returns their paths.

    Args:
        name: of the method, as in `method=NAME`.
        root: of the checkout; by default that of this package.

    Raises:
        ToPiError: NAME is not a valid method name or is already in use, or there is no checkout.
    """
    check_name(name)
    root = conf_folder().parent if root is None else root
    paths = {template: root / where.format(name) for template, where in WRITES.items()}
    for path in paths.values():
        if path.exists():
            raise ToPiError(f"{path.relative_to(root)} exists already; choose another name.")
        if not path.parent.is_dir():
            raise ToPiError(f"{root} is not a checkout of this repository: it lacks {path.parent}.")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Python and YAML, from a name that has been checked
    )
    words = name.split("_")
    about = {
        "name": name,
        "cls": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
    }
    for template, path in paths.items():
        files.write(path, environment.get_template(template).render(about).encode())
    return list(paths.values())


def check_name(name: str) -> None:
    """Refuse a name that is not valid for a method, or is already in use.

    Raises:
        ToPiError: with the reason.
    """
    from topi import methods  # loads torch

    walked = pkgutil.walk_packages(methods.__path__, f"{methods.__name__}.")
    modules = {module.name.rpartition(".")[2] for module in walked}
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ToPiError(
            f"{name!r} is not a valid method name; use small letters, digits and single "
            "underscores, such as my_method."
        )
    if name in methods.METHODS or name in methods.CACHES or name in modules:
        raise ToPiError(f"{name!r} is already in use by a method, a cache or a module.")
