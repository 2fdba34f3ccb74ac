"""The README tells the truth: its commands exist, its tree and its settings table are right.

The tree is a fenced ``text`` block under "## The tree": two spaces per level, a path, two or
more spaces, what it is. The settings table is under "## Settings".
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slm_core.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
FENCED_OR_INLINE = re.compile(r"```(?!text)[^\n]*\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", re.DOTALL)
CODE = "\n".join("".join(groups) for groups in FENCED_OR_INLINE.findall(README))


def commands(program: str) -> list[str]:
    """Plain words that follow ``program`` at the start of a command in the README's code."""
    pattern = rf"(?:^|&& )(?:[$>] |\S*/bin/|[A-Z_]+=\S+ )*{program}((?: [a-z][a-z-]*)+)"
    return sorted({found.strip() for found in re.findall(pattern, CODE, re.MULTILINE)})


def section(title: str) -> str:
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE
    )
    assert found, f"README.md lacks a section '## {title}'"
    return found.group(1)


def test_make_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for line in commands("make") for word in line.split()}
    assert {"demo", "test", "up", "down"} <= named, "the README does not show the main commands"
    assert named <= targets


def test_slm_commands_exist() -> None:
    shown = commands("slm")
    assert shown, "the README shows no slm command"
    for words in shown:
        run = "import sys; from slm_core.cli import main; sys.exit(main())"
        result = subprocess.run(
            [sys.executable, "-c", run, *words.split(), "--help"], capture_output=True, text=True
        )
        assert result.returncode == 0, f"slm {words}: {result.stderr}"


def test_deployments_in_the_readme_exist() -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {deployment["name"] for deployment in declared}
    shown = re.findall(r"prefect deployment run [a-z-]+/([a-z-]+)", CODE)
    assert shown, "the README runs no deployment"
    assert set(shown) <= names


def test_the_tree_is_the_one_on_disk() -> None:
    block = re.search(r"```text\n(.*?)```", section("The tree"), re.DOTALL)
    assert block, "'## The tree' lacks a fenced text block"
    shown: set[str] = set()
    parents: list[str] = []
    for line in filter(str.strip, block.group(1).splitlines()):
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents[level:] = [name]
        shown.add("".join(parents))
    missing = sorted(path for path in shown if not (ROOT / path).exists())
    assert missing == [], "shown, but not on disk"
    assert sorted(_to_be_shown() - shown) == [], "on disk, but not shown"


def _to_be_shown() -> set[str]:
    """Every tracked file and folder at the top, in flows, in tasks and in slm_core."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [path for path in listed.stdout.splitlines() if not path.startswith(".")]
    wanted: set[str] = set()
    for path in paths:
        first, *rest = path.split("/")
        wanted.add(first + "/" if rest else first)
        if first in ("flows", "tasks", "slm_core"):
            wanted.add(f"{first}/{rest[0]}/" if len(rest) > 1 else path)
    return {path for path in wanted if not path.endswith(("__init__.py", "py.typed"))}


def test_the_settings_table_is_that_of_the_code() -> None:
    rows = [
        f"| `{row.name}` | {row.default} | {row.meaning} |".replace("|  |", "| |")
        for row in Settings.describe()
    ]
    shown = [line for line in section("Settings").splitlines() if line.startswith("| `")]
    assert shown == rows, "the table should read:\n" + "\n".join(rows)


@pytest.mark.parametrize("title", ["Quickstart", "Settings", "The tree"])
def test_the_readme_has_its_sections(title: str) -> None:
    assert section(title).strip()
