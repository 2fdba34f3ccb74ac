"""What a training asks about its GPUs: watch them, tell of the first fatal sign, examine.

The doctor's own process never touches the driver, neither by NVML nor by CUDA, and never waits
for anything without a limit. It repairs nothing: resets and reboots are commands that a person
reads in the verdict.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from slm_core.health import bundle, identity
from slm_core.health.examination import Case, Examined, examine
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger, LedgerEntry
from slm_core.health.sightings import Sighting, SightingsReader
from slm_core.health.spec import HealthSpec
from slm_core.health.triage import decide, triage
from slm_core.health.watch_spec import WatchSpec
from slm_core.health.watchdog import DEVICES, SIGHTINGS, TELEMETRY, WatchConfig
from slm_core.records import Fault, NextAction, Triage, utc_now

log = logging.getLogger(__name__)

_END_SECONDS = 3.0
_MOST_RESTARTS = 3


class GpuDoctor:
    """Fulfils what ``slm_core.training`` asks of a doctor."""

    def __init__(
        self,
        host: HostPaths,
        folder: Path,
        spec: HealthSpec | None = None,
        watch: WatchSpec | None = None,
        *,
        job: str | None = None,
        ledger: Path | None = None,
    ) -> None:
        """Use ``folder`` for what is seen of this run and for the bundles.

        Args:
            host: where this machine keeps what is read.
            folder: of the run; made if need be.
            spec: limits of single questions.
            watch: pauses and limits of watchdog and post-mortem.
            job: name of the run, by which a fault counts as another job's; the folder's path if
                not given.
            ledger: file that all runs of this machine share; one inside ``folder`` if not given,
                which then cannot know of other jobs.
        """
        self._host = host
        self._folder = folder
        self._spec = spec or HealthSpec()
        self._watch = watch or WatchSpec()
        self._job = job or str(folder.resolve())
        self.ledger = Ledger(ledger or folder / "ledger.json")
        self._process: subprocess.Popen[bytes] | None = None
        self._config = ""
        self._restarts = 0
        self._reader: SightingsReader | None = None
        self._seen: list[Sighting] = []
        self._began_at: datetime | None = None

    @contextmanager
    def watch(self, gpus: tuple[str, ...]) -> Iterator[None]:
        """Watch kernel log and driver in processes of their own while the context lasts.

        Without GPUs there is nothing to watch.
        """
        self._began_at = utc_now()
        self._seen, self._restarts = [], 0
        if not gpus:
            self._reader = None
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._reader = SightingsReader(self._folder / SIGHTINGS)
        self._config = self._configure(gpus)
        self._process = self._start()
        try:
            yield
        finally:
            self._end()
            self._look()

    def alarm(self) -> Fault | None:
        """Return the first sighting that must end the run, or None. Reads one small file."""
        self._look()
        self._keep_watchdog()
        now = time.monotonic()
        for sighting in self._seen:
            waited = now - sighting.monotonic_seconds
            if sighting.fault and (sighting.urgent or waited >= self._watch.own_words_seconds):
                return _fault(sighting, now)
        return None

    def examine(self, fault: Fault, words: str, gpus: tuple[str, ...]) -> Triage:
        """Return one verdict and one next action; the bundle and the ledger are written first."""
        began_at = self._began_at
        if began_at is None:  # no watch: the recent past, as in a preflight
            began_at = utc_now() - timedelta(seconds=self._spec.recent_seconds)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._look()
        case = Case(
            host=self._host,
            spec=self._spec,
            watch=self._watch,
            fault=fault,
            words=words,
            gpus=gpus,
            began_at=began_at,
            job=self._job,
            devices=identity.load(self._folder / DEVICES),
            sightings=tuple(self._seen),
            ledger=self.ledger,
        )
        examined = examine(case)
        rule, _ = decide(examined.evidence)
        verdict = triage(examined.evidence)
        try:
            verdict = bundle.write(
                self._folder,
                host=self._host,
                fault=fault,
                words=words,
                began_at=began_at,
                examined=examined,
                verdict=verdict,
                rule=rule,
                telemetry=self._folder / TELEMETRY,
                sightings=self._folder / SIGHTINGS,
            )
        except OSError as error:  # a full disk must not cost the verdict
            log.warning("no bundle could be written folder=%s: %s", self._folder, error)
        try:
            self._write_ledger(verdict, examined)
        except OSError as error:
            log.warning("ledger could not be written path=%s: %s", self.ledger.path, error)
        log.warning("gpu fault judged action=%s rule=%s bundle=%s", verdict.action, rule,
                    verdict.bundle)  # fmt: skip
        return verdict

    def _write_ledger(self, verdict: Triage, examined: Examined) -> None:
        """Before any action, write one entry per GPU that did something.

        What is to be done to the machine, and to no GPU of it, is an entry of its own.
        """
        xids: dict[str, list[int]] = {gpu: [] for gpu in verdict.sick}
        for xid in examined.evidence.xids:
            xids.setdefault(xid.gpu, []).append(xid.code)
        named: dict[str | None, list[int]] = {**xids}
        if verdict.action is not NextAction.RESUME and not verdict.sick:
            named[None] = []
        entries = [
            LedgerEntry(
                wall_time=time.time(),
                boot_id=self._host.boot_id(),
                job=self._job,
                gpu=gpu,
                xids=tuple(codes),
                # No mark against a GPU that only reported something.
                action=verdict.action if gpu is None or gpu in verdict.sick else NextAction.RESUME,
                reason=verdict.reason,
                bundle=verdict.bundle,
            )
            for gpu, codes in named.items()
        ]
        if entries:
            self.ledger.record(*entries)

    def _configure(self, gpus: tuple[str, ...]) -> str:
        host, watch = self._host, self._watch
        return WatchConfig(
            folder=self._folder,
            gpus=gpus,
            parent=os.getpid(),
            began_at=self._began_at or utc_now(),
            kernel_log=host.kernel_log,
            kmsg=host.kmsg,
            journalctl=host.journalctl,
            proc=host.proc,
            sys=host.sys,
            dev=host.dev,
            python=host.python,
            kernel_poll_seconds=watch.kernel_poll_seconds,
            nvml_pause_seconds=watch.nvml_pause_seconds,
            nvml_deadline_seconds=watch.nvml_deadline_seconds,
            files_seconds=self._spec.files_seconds,
            ring_seconds=watch.ring_seconds,
        ).model_dump_json()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._folder / "watchdog.log").open("ab") as output:
            return subprocess.Popen(
                [self._host.python, "-m", "slm_core.health.watchdog", self._config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _keep_watchdog(self) -> None:
        """Start the watchdog again if something ended it; a few times, then go on without."""
        if self._process is None or self._process.poll() is None:
            return
        code = self._process.returncode
        self._process = None
        if self._restarts >= _MOST_RESTARTS:
            log.warning("gpu watchdog ended again code=%s; going on without it", code)
            return
        self._restarts += 1
        log.warning("gpu watchdog ended code=%s; starting it again", code)
        self._process = self._start()

    def _look(self) -> None:
        if self._reader is not None:
            self._seen += self._reader.new()

    def _end(self) -> None:
        """Let the watchdog write its vital signs and end; wait a few seconds at most."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, 1.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    return
                time.sleep(0.02)
        log.warning("gpu watchdog cannot be killed pid=%s; left behind", process.pid)


def _fault(sighting: Sighting, now: float) -> Fault:
    since = sighting.since_seconds
    if since is None or not sighting.monotonic_seconds - since >= 0:
        since = sighting.monotonic_seconds
    assert sighting.fault is not None
    return Fault(
        kind=sighting.fault,
        message=f"{sighting.text} (seen in: {sighting.source})",
        details=sighting.model_dump(exclude_none=True, exclude={"fault", "urgent"}),
        detected_after_seconds=round(now - since, 3),
    )
