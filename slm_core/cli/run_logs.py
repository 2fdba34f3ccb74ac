"""What a run wrote: the workers' logs in its folder, and what its flow run logged."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slm_core.cli.prefect_client import LogLine, PrefectClient
from slm_core.cli.run_account import RunAccount
from slm_core.errors import PrefectUnavailable
from slm_core.training.run_folder import ATTEMPT_MARK

_MARK = re.compile(rf"^{re.escape(ATTEMPT_MARK)} (\d+) ", re.MULTILINE)
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
LOOK_SECONDS = 1.0
BEGIN_SECONDS = 60.0
"""A run that was just resumed waits so long at most for a worker, and to be loaded."""
_SERVER_SECONDS = 5.0


class Watch:
    """Whether a run goes on, or may be about to."""

    def __init__(self, run: RunAccount, at_work: Callable[[], bool]) -> None:
        self._at_work = at_work
        # Only an order tells whether its run is at work; others are watched until Ctrl-C.
        self._told = run.folder is not None and (Path(run.folder) / "order.json").is_file()
        over = run.state == "completed"
        self._until = time.monotonic() + (0.0 if over else BEGIN_SECONDS)

    def __call__(self) -> bool:
        if self._at_work():
            self._until = 0.0
            return True
        return not self._told or time.monotonic() < self._until


def worker_logs(run: RunAccount) -> list[Path]:
    """Return the logs of the run's workers that are on this machine."""
    files = [Path(part.folder) / "worker.log" for part in run.parts]
    return [file for file in files if file.is_file()]


def of_attempt(text: str, number: int) -> str | None:
    """Return what the workers of one attempt wrote; None when the log tells of no such attempt."""
    marks = list(_MARK.finditer(text))
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        if int(mark[1]) == number:
            return text[mark.start() : after.start() if after else None]
    return None


def last_lines(text: str, count: int) -> str:
    """Return the last ``count`` lines; all of them for 0."""
    return "\n".join(text.splitlines()[-count:] if count else text.splitlines())


def shown(line: LogLine) -> str:
    """Return a line of a flow run as people read it."""
    level = _LEVELS.get(line.level, str(line.level))
    return f"{line.when:%Y-%m-%d %H:%M:%S} {level:8} {line.text}"


def follow(
    files: Callable[[], Sequence[Path]],
    server: PrefectClient | None,
    flow_runs: Sequence[str],
    going_on: Callable[[], bool],
) -> Iterator[str]:
    """Yield what is written from now on, until ``going_on`` says no.

    Args:
        files: the logs; asked again each time, for a worker may start later.
        server: asked for the lines of ``flow_runs``; None leaves them out.
        flow_runs: ids of flow runs.
        going_on: whether somebody may still write.
    """
    offsets = {file: file.stat().st_size for file in files()}
    seen = sum(1 for _ in server.logs(flow_runs)) if server else 0
    asked = time.monotonic()
    while True:
        last_look = not going_on()
        for file in files():
            with file.open("rb") as log:
                log.seek(offsets.get(file, 0))
                added = log.read()
            # A line that is being written is left for the next look.
            whole = added if last_look else added[: added.rfind(b"\n") + 1]
            offsets[file] = offsets.get(file, 0) + len(whole)
            yield from whole.decode("utf-8", "replace").splitlines()
        if server and (last_look or time.monotonic() - asked > _SERVER_SECONDS):
            asked = time.monotonic()
            try:
                for line in server.logs(flow_runs, skip=seen):
                    seen += 1
                    yield shown(line)
            except PrefectUnavailable as error:
                yield f"({error})"
        if last_look:
            return
        time.sleep(LOOK_SECONDS)
