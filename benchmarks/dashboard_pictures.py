"""Pictures of the dashboard, as people see it: each page of a running stack as one PNG.

    make up
    prefect deployment run status/now
    python -m benchmarks.dashboard_pictures --out pictures

Needs Chromium (Debian: ``apt-get install chromium``) and a stack that is up. It asks the server
which runs and artifacts there are and takes the newest of each kind; a kind that there is none of
yet is named and left out. Pages of the dashboard load their content by scripts, so each gets some
seconds. The approval form is that of a promotion that waits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.browser import Browser, chromium

WIDTH = 1440
_LOAD_SECONDS = 4.0
ARTIFACTS = ("status", "training-live", "report", "arms", "attempts", "plots", "gpu-machine")
FLOWS = ("retrain", "train", "eval", "status", "promote", "check-gpus")


class Page(NamedTuple):
    """One picture."""

    name: str
    address: str
    height: int = 1000
    clicks: tuple[str, ...] = ()
    """Texts of what is to be clicked first, in order."""


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
    with chromium(arguments.chromium) as browser:
        for page in (*of_dashboard(api), *of_files(home)):
            if arguments.only and arguments.only not in page.name:
                continue
            path = arguments.out / f"{page.name}.png"
            taken = take(browser, page, path)
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
    waiting = next((run for run in runs if run["state_type"] == "PAUSED"), None)
    if waiting is None:
        print(f"{'approval-form':24} none yet")
    else:
        run = f"{site}/runs/flow-run/{waiting['id']}"
        yield Page("approval-form", run, 1600, ("Open menu", "Resume"))
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


def take(browser: Browser, page: Page, path: Path) -> bool:
    """Take one picture; return whether it shows what it should."""
    path.unlink(missing_ok=True)
    browser.go(page.address, WIDTH, page.height)
    time.sleep(_LOAD_SECONDS)
    for text in page.clicks:
        if not browser.click(text):
            return False
        time.sleep(_LOAD_SECONDS)
    browser.picture(path)
    return True


def _ask(address: str, **body: Any) -> list[dict[str, Any]]:
    return httpx.post(address, json=body, timeout=30).raise_for_status().json()


if __name__ == "__main__":
    main()
