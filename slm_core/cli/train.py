"""``slm train``: trainings without a dashboard, for an on-call engineer with a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, progress, show_facts, show_json, warn
from slm_core.errors import ConfigError

if TYPE_CHECKING:
    from slm_core.records import Gpu
    from slm_core.settings import Settings
    from slm_core.training.doctor import Doctor
    from slm_core.training.orders import Order
    from slm_core.training.spec import TrainingSpec

app = typer.Typer(no_args_is_help=True, help="Trainings.")


@app.callback()
def _several() -> None:
    pass


@app.command()
def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="Id of the run; without it the newest that crashed."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a training from its last checkpoint, in this terminal and without Prefect.

    Of a retraining only the training is done here; what comes after it needs the flow `resume`.
    """
    from slm_core.training.orders import OrderBook

    settings = load_settings(log_level="INFO")
    book = OrderBook(settings.home / "runs")
    resume_here(settings, book.get(run) if run else book.newest_resumable(), as_json=as_json)


def resume_here(settings: Settings, order: Order, *, as_json: bool) -> None:
    """Go on with the trainings of a run in this process, and say what came of it.

    Raises:
        ConfigError: the run had not come to its training.
        SlmError: see ``train_recorded``.
    """
    from slm_core.training.base_model import check_base_model
    from slm_core.training.orders import OrderBook
    from slm_core.training.recorded import train_recorded

    book = OrderBook(settings.home / "runs")
    whole = order.flow == "train"
    dataset_id = _ready(order)
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    with opened_store(settings) as store:
        dataset = store.datasets.get(dataset_id)
        adapters = []
        with book.carry_out(order) if whole else book.hold(order.run_id):
            for part in order.parts:
                gpus = _fit_gpus(settings, part.training)
                check_base_model(part.training, token=token, gpus=gpus)
                folder = settings.home / "runs" / part.run_id / "training"
                uuids = tuple(gpu.uuid for gpu in gpus)[: part.training.world_size]
                with progress(part.run_id) as on_progress:
                    adapters.append(
                        train_recorded(
                            part.training,
                            runs=store.runs,
                            adapters=store.adapters,
                            dataset=dataset,
                            folder=folder,
                            run_id=part.run_id,
                            gpus=uuids,
                            doctor=_doctor(settings, part.run_id, uuids),
                            on_progress=on_progress,
                            usd_per_hour=settings.training_usd_per_hour,
                        )
                    )
    if as_json:
        show_json([one.model_dump(mode="json", exclude={"losses"}) for one in adapters])
    else:
        show_facts({f"adapter of {one.run_id}": f"{one.id}  {one.path}" for one in adapters})
    if not whole:
        warn(
            "Trained, but not yet evaluated. Go on with: "
            f"prefect deployment run resume/run -p run_id={order.run_id}"
        )


def _ready(order: Order) -> str:
    """Return the dataset of a run that had come to its training."""
    if order.dataset_id is None or not order.parts:
        raise ConfigError(
            f"Run {order.run_id} ended before its training began, and what comes first needs "
            f"Prefect: prefect deployment run resume/run -p run_id={order.run_id}"
        )
    return order.dataset_id


def _fit_gpus(settings: Settings, spec: TrainingSpec) -> tuple[Gpu, ...]:
    """Return the GPUs to train on; none for a training that runs on the CPU."""
    from slm_core.training.base_model import wants_gpus

    if not wants_gpus(spec):
        return ()
    from slm_core.health import HealthSpec, check_gpus
    from slm_core.health.fit import fit_gpus, refuse_before_reboot
    from slm_core.health.host import HostPaths

    refuse_before_reboot(settings.gpu_ledger, HostPaths())
    with progress("checking the GPUs") as on_progress:
        spec_of_health = HealthSpec(expected_gpus=settings.expected_gpus)
        return fit_gpus(
            check_gpus(spec_of_health, kernel_log=settings.kernel_log, on_progress=on_progress)
        )


def _doctor(settings: Settings, run_id: str, gpus: tuple[str, ...]) -> Doctor | None:
    """Return who watches and examines the GPUs; nobody for a training on the CPU."""
    if not gpus:
        return None
    from slm_core.health.doctor import GpuDoctor
    from slm_core.health.host import HostPaths

    return GpuDoctor(
        HostPaths(kernel_log=settings.kernel_log),
        settings.home / "runs" / run_id / "health",
        job=run_id,
        # One for all runs of this machine: a fault counts for the next one too.
        ledger=settings.gpu_ledger,
    )
