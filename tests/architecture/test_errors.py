"""Every error survives a process boundary with its message, numbers and advice."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from slm_core import errors

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.SlmError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_pickles_with_its_context(cls: type[errors.SlmError]) -> None:
    error = cls("Training ran out of memory. Lower the batch.", batch=4, free_bytes=1024)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.context == {"batch": 4, "free_bytes": 1024}
    assert copy.retryable == cls.retryable


def test_a_config_error_pickles_with_every_problem() -> None:
    error = errors.ConfigError("Two settings are wrong.", problems=("A is not set", "B is 0"))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == ("A is not set", "B is 0")
    assert "B is 0" in str(copy)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_tree_in_the_docstring_names_every_class(cls: type[errors.SlmError]) -> None:
    assert cls.__name__ in (errors.__doc__ or "").split()


class Hint(NamedTuple):
    """One place that tells which extra to install, and what for."""

    where: str
    extra: str
    what: str
    """Its words; what is put into them stands in braces, as in the code."""


def hints() -> Iterator[Hint]:
    for path in sorted([*ROOT.glob("slm_core/**/*.py"), *ROOT.glob("tasks/*.py")]):
        text = path.read_text()
        if path.name == "errors.py" or not re.search("of_extra|install_line|find_program", text):
            continue
        for node in ast.walk(ast.parse(text)):
            where = f"{path.stem}:{getattr(node, 'lineno', '')}"
            match node:
                case ast.Call(func=ast.Attribute(attr="of_extra"), args=[extra, what, *_]):
                    yield Hint(where, ast.literal_eval(extra), words(what))
                case ast.JoinedStr() if (extra := installed_by(node)) is not None:
                    yield Hint(where, extra, words(node))
                case ast.Call(func=ast.Name("find_program"), args=[_, package]):
                    yield Hint(where, "dev", ast.literal_eval(package))


def words(text: ast.expr) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
        for part in parts
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )


def installed_by(text: ast.JoinedStr) -> str | None:
    """Return the extra in whose words ``install_line`` is called, if it is."""
    for node in ast.walk(text):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "install_line":
            return ast.literal_eval(node.args[0])
    return None


def names(requirements: Iterable[str]) -> set[str]:
    """Return the packages of ``requirements``, spelt as the registry compares them."""
    found = [re.match(r"[\w.-]+", one) for one in requirements]
    return {re.sub(r"[-_.]+", "-", one[0]).lower() for one in found if one}


HINTS = list(hints())


def test_the_places_that_name_an_extra_are_found() -> None:
    assert len(HINTS) >= 10
    assert {"train", "hub", "serve", "report", "local", "fanout", "dev"} <= {h.extra for h in HINTS}


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.where)
def test_an_extra_that_an_error_names_brings_the_packages_that_it_names(hint: Hint) -> None:
    assert hint.extra in EXTRAS
    known = set().union(*map(names, EXTRAS.values()))
    named = names(re.findall(r"[A-Za-z][\w.-]*\w", hint.what)) & known
    # ``find_program`` is told the package; its callers are looked at instead.
    assert named or "{package}" in hint.what, "name the package that is missing"
    assert named <= names(EXTRAS[hint.extra])


def test_a_missing_package_is_told_with_the_line_that_installs_it() -> None:
    error = errors.MissingDependency.of_extra("hub", "Loading needs datasets", ImportError("none"))
    assert str(error) == (
        "Loading needs datasets (none). Run: pip install -c constraints.txt -e '.[hub]'"
    )


def test_nothing_is_installed_without_the_versions_that_were_tested() -> None:
    told = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for top in ("slm_core", "tasks", "flows")
        for path in sorted((ROOT / top).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "pip install" in line and "-c constraints.txt" not in line
    ]
    assert told == []
