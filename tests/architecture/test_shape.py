"""The shape of the repository: names, lengths, and who may do what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("flows", "tasks", "slm_core")
MODULES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
ALL_PYTHON = sorted(
    path
    for folder in (*CODE, "tests", "benchmarks", "assets")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 400
ENVIRONMENT = ("environ", "environb", "getenv", "getenvb")
BANNED = {"utils", "util", "helpers", "helper", "common", "misc"}
# Split, so that this file does not hold them itself.
WORKPLACE = ("/wo" + "rk/", "/opt/py" + "pi", "/opt/whe" + "els", "shared/no" + "tes")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_no_file_is_longer_than_the_ceiling(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split it by noun"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    assert ast.get_docstring(ast.parse(path.read_text())), "the module docstring is missing"


def test_no_module_has_a_catch_all_name() -> None:
    assert [relative(path) for path in MODULES if BANNED & set(path.with_suffix("").parts)] == []


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    stems = [path for path in MODULES if not path.stem.startswith("__")]
    assert [relative(path) for path in stems if path.stem in sys.stdlib_module_names] == []


def test_flow_files_are_verb_and_noun() -> None:
    # Prefect puts flows/ first on sys.path: flows/datasets.py would shadow the package.
    stems = [path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__"]
    assert [stem for stem in stems if "_" not in stem.strip("_")] == []


@pytest.mark.parametrize("folder", ["docker", "deployments"])
def test_no_python_where_it_would_shadow_a_package(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_no_package_under_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_only_settings_reads_the_environment() -> None:
    readers = {
        relative(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if _reads_environment(node)
    }
    assert readers == {"slm_core/settings.py"}


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(name.name in ENVIRONMENT for name in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {f"os.{n}" for n in ENVIRONMENT}


def test_errors_are_declared_in_one_file() -> None:
    tree = ast.parse((ROOT / "slm_core/errors.py").read_text())
    ours = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    elsewhere = {
        f"{relative(path)}: {node.name}"
        for path in MODULES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in ours for base in node.bases)
    }
    assert elsewhere == set()


def test_any_other_exception_is_a_signal_that_stays_in_its_folder() -> None:
    signals = {
        (path.parent, node.name)
        for path in MODULES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    }
    assert signals, "the search finds none of those that there are"
    strays = {
        f"{relative(path)}: {alias.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        for folder, name in signals
        if alias.name == name and path.parent != folder
    }
    assert strays == set(), "declare it in errors.py"


def test_packages_export_exactly_what_they_import() -> None:
    for path in (ROOT / "slm_core").rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        imported = {
            name.asname or name.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slm_core")
            for name in node.names
        }
        assert set(_exported(tree)) == imported, relative(path)


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_nothing_names_the_place_where_it_was_written() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    found = {
        f"{relative(path)}: {word}"
        for path in files
        if path.is_file() and path.stat().st_size < 1_000_000
        for word in WORKPLACE
        if word in path.read_text(errors="ignore")
    }
    assert found == set()


def test_agents_file_is_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) < 60
