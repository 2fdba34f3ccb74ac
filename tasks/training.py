"""Base model, GPUs and dataset to an adapter."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.exceptions import TerminationSignal

from slm_core.backends.model_hub import ModelAccess
from slm_core.records import Adapter, Attempt, Dataset, Gpu
from slm_core.report.training_page import attempt_rows, training_markdown
from slm_core.training import TrainingSpec
from slm_core.training.base_model import check_base_model as check
from slm_core.training.base_model import wants_gpus
from slm_core.training.doctor import Doctor
from slm_core.training.recorded import train_recorded
from tasks._artifacts import showing
from tasks._live_training import LiveTrainingPage
from tasks._progress import OnProgress, progress
from tasks._wiring import current_settings, opened_store, order_book, run_folder, step

_stopping = threading.Event()


@step("check the base model")
def check_base_model(spec: TrainingSpec, gpus: Sequence[Gpu] = ()) -> ModelAccess:
    """Refuse, before a download, a model that cannot be had or that the GPUs cannot hold."""
    token = current_settings().hf_token
    return check(
        spec,
        token=token.get_secret_value() if token else None,
        gpus=gpus,
    )


def ready_gpus(spec: TrainingSpec) -> tuple[Gpu, ...]:
    """Return the GPUs that a preflight found fit; none for a training that runs on the CPU.

    Raises:
        GpuFault: the training needs one and none is fit, or this machine must be restarted first.
    """
    if not wants_gpus(spec):
        return ()
    from slm_core.health.fit import fit_gpus, refuse_before_reboot
    from slm_core.health.host import HostPaths
    from tasks.health import check_gpus

    refuse_before_reboot(current_settings().gpu_ledger, HostPaths())
    return fit_gpus(check_gpus())


@step("train the adapter")
def train_adapter(
    spec: TrainingSpec, dataset: Dataset, run_id: str, gpus: tuple[str, ...] = ()
) -> Adapter:
    """Train, or take up where an earlier attempt of this run left off; every attempt is kept."""
    folder = run_folder(run_id) / "training"
    order = order_book().find(run_id)
    traced_as = order.run_id if order else run_id
    page = LiveTrainingPage(run_id, traced_as, folder, current_settings())
    with opened_store() as store, progress(page.title, page.live()) as on_progress:
        try:
            return train_recorded(
                spec,
                runs=store.runs,
                adapters=store.adapters,
                dataset=dataset,
                folder=folder,
                run_id=run_id,
                gpus=gpus,
                doctor=_doctor(run_id, gpus),
                on_progress=_until_stopped(on_progress),
                on_attempts=page.follow,
                usd_per_hour=current_settings().training_usd_per_hour,
            )
        finally:
            _show_attempts(page.attempts)


def stop_trainings() -> None:
    """Let the trainings of other threads save and end at their next step."""
    _stopping.set()


def allow_trainings() -> None:
    """Take ``stop_trainings`` back."""
    _stopping.clear()


def show_trainings(adapters: Sequence[Adapter], dataset: Dataset) -> None:
    """Show what was trained as a page of the run."""
    with opened_store() as store:
        runs = {run.adapter_id: run for run in store.runs.list()}
    page = training_markdown([(adapter, runs.get(adapter.id)) for adapter in adapters], dataset)
    with showing("training"):
        create_markdown_artifact(page, key="training", description="What was trained, and how")


@step("find the adapter")
def find_adapter(adapter_id: str | None) -> Adapter | None:
    """Return the adapter of that id; without an id the one trained last, if there is any."""
    with opened_store() as store:
        if adapter_id is not None:
            return store.adapters.get(adapter_id)
        return max(store.adapters.list(), key=lambda a: a.created_at, default=None)


def _doctor(run_id: str, gpus: tuple[str, ...]) -> Doctor | None:
    """Return who watches and examines the GPUs; nobody for a training on the CPU."""
    if not gpus:
        return None
    from slm_core.health.doctor import GpuDoctor
    from slm_core.health.host import HostPaths

    settings = current_settings()
    return GpuDoctor(
        HostPaths(kernel_log=settings.kernel_log),
        run_folder(run_id) / "health",
        job=run_id,
        # One for all runs of this machine: a fault counts for the next one too.
        ledger=settings.gpu_ledger,
    )


def _until_stopped(on_progress: OnProgress) -> OnProgress:
    """Pass progress on until ``stop_trainings``: a signal only ever reaches the main thread."""

    def show(done: int, total: int, what: str) -> None:
        if _stopping.is_set() and threading.current_thread() is not threading.main_thread():
            raise TerminationSignal(signal.SIGTERM)
        on_progress(done, total, what)

    return show


def _show_attempts(attempts: tuple[Attempt, ...]) -> None:
    """Show the attempts as a table, each with its plan and the reason for it."""
    if not attempts:
        return
    with showing("attempts", unwinding=True):
        create_table_artifact(
            attempt_rows(attempts), key="attempts", description="Every attempt, and why"
        )
