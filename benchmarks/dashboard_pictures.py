"""Pictures of the dashboard, as people see it: each page of a running stack as one PNG.

    make up
    prefect deployment run status/now
    python benchmarks/dashboard_pictures.py --out pictures

Needs Chromium (Debian: ``apt-get install chromium``) and a stack that is up. It asks the server
which runs and artifacts there are and takes the newest of each kind; a kind that there is none of
yet is named and left out. Pages of the dashboard come with their own scripts, so Chromium gets some
seconds of virtual time for each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

WIDTH = 1440
ARTIFACTS = ("status", "training-live", "report", "arms", "attempts", "plots", "gpu-machine")
FLOWS = ("retrain", "train", "eval", "status", "promote", "check-gpus")


class Page(NamedTuple):
    """One picture."""

    name: str
    address: str
    height: int = 1000


def main() -> None:
    """Take every picture that there is something to see on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--only", help="a part of the names of those to take")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    arguments = parser.parse_args()
    api = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    home = Path(os.environ.get("SLM_HOME", ".slm"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for page in (*of_dashboard(api), *of_files(home)):
        if arguments.only and arguments.only not in page.name:
            continue
        path = arguments.out / f"{page.name}.png"
        taken = take(arguments.chromium, page, path)
        failed += not taken
        print(f"{page.name:24} {path if taken else 'no picture'}")
    sys.exit(1 if failed else 0)


def of_dashboard(api: str) -> Iterator[Page]:
    """Yield the pages of the Prefect server that have something to show."""
    site = api.removesuffix("/api") + "/v2"
    yield Page("dashboard", f"{site}/dashboard", 1100)
    yield Page("deployments", f"{site}/deployments", 1500)
    yield Page("automations", f"{site}/automations", 1200)
    yield Page("work-pools", f"{site}/work-pools", 700)
    flows = {flow["id"]: flow["name"] for flow in _ask(f"{api}/flows/filter")}
    runs = _ask(f"{api}/flow_runs/filter", sort="START_TIME_DESC", limit=200)
    begun = [run for run in runs if run["start_time"]]
    for name in FLOWS:
        run = next((run for run in begun if flows.get(run["flow_id"]) == name), None)
        if run is None:
            print(f"{'run-' + name:24} none yet")
            continue
        page = f"{site}/runs/flow-run/{run['id']}"
        yield Page(f"run-{name}", page, 1100)
        yield Page(f"run-{name}-artifacts", f"{page}?tab=Artifacts", 1100)
    for key in ARTIFACTS:
        found = _ask(
            f"{api}/artifacts/filter",
            artifacts={"key": {"any_": [key]}},
            sort="CREATED_DESC",
            limit=1,
        )
        if not found:
            print(f"{'artifact-' + key:24} none yet")
            continue
        height = 2600 if key in ("report", "status", "training-live") else 1000
        yield Page(f"artifact-{key}", f"{site}/artifacts/artifact/{found[0]['id']}", height)


def of_files(home: Path) -> Iterator[Page]:
    """Yield the pages that lie on disk."""
    if (status := home / "status.html").exists():
        yield Page("status-page", status.resolve().as_uri(), 1500)
    reports = sorted(home.glob("runs/*/report/report.html"), key=lambda path: path.stat().st_mtime)
    if reports:
        yield Page("report-page", reports[-1].resolve().as_uri(), 3000)


def take(chromium: str, page: Page, path: Path) -> bool:
    """Take one picture; return whether there is one."""
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="slm-chromium-") as profile:
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={WIDTH},{page.height}",
                "--virtual-time-budget=15000",
                f"--screenshot={path.resolve()}",
                page.address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
    return path.exists()


def _ask(address: str, **body: Any) -> list[dict[str, Any]]:
    return httpx.post(address, json=body, timeout=30).raise_for_status().json()


if __name__ == "__main__":
    main()
