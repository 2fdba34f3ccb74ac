"""A headless Chromium, told over its DevTools protocol to go, click and take a picture."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_START_SECONDS = 60.0
_CLICK = """
(() => {
  const wanted = %s;
  const found = [...document.querySelectorAll("button, a, [role=button], [role=menuitem]")]
    .find(e => e.textContent.trim() === wanted && e.offsetParent !== null);
  if (found) {
    // A menu opens at the press, everything else acts at the click.
    found.dispatchEvent(new PointerEvent("pointerdown", {bubbles: true, button: 0}));
    found.click();
  }
  return Boolean(found);
})()
"""


class Browser:
    """One page of a Chromium that runs."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._asked = 0

    def go(self, address: str, width: int, height: int) -> None:
        """Open an address in a window of that many pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._tell("Emulation.setDeviceMetricsOverride", **size)
        self._tell("Page.enable")
        self._tell("Page.navigate", url=address)

    def click(self, text: str, *, timeout_seconds: float = 20.0) -> bool:
        """Click what has that text once it is there; return whether it came."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            said = self._tell(
                "Runtime.evaluate", expression=_CLICK % json.dumps(text), returnByValue=True
            )
            if said["result"].get("value"):
                return True
            time.sleep(0.2)
        return False

    def picture(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        said = self._tell("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(said["data"]))

    def _tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        order = {"id": self._asked, "method": method, "params": parameters}
        self._connection.send(json.dumps(order))
        while True:
            said = json.loads(self._connection.recv(timeout=60))
            if said.get("id") != self._asked:
                continue  # an event
            if "error" in said:
                raise RuntimeError(f"{method}: {said['error']}")
            return said["result"]


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run Chromium with a profile of its own, and end it.

    Raises:
        FileNotFoundError: there is no such program.
        TimeoutError: it did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="slm-chromium-") as profile:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort")
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
            page = next(one for one in pages if one["type"] == "page")
            with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
                yield Browser(connection)
        finally:
            process.kill()
            process.wait(10)


def _port(file: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not (file.exists() and (lines := file.read_text().splitlines())):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Chromium has not come up in {_START_SECONDS:.0f} s.")
        time.sleep(0.1)
    return int(lines[0])
