"""From the name of an arm to what answers: the teacher over HTTP, the students in this process."""

from __future__ import annotations

from pathlib import Path

from slm_core.backends.base import Backend
from slm_core.capture.prices import PriceTable
from slm_core.errors import MissingDependency
from slm_core.evaluation import Arm
from slm_core.presets import EvalSpec
from slm_core.prompting.prefix import Variant, get_prefix
from slm_core.records import Adapter, ArmName, utc_now
from tasks._wiring import current_settings


def named_arm(name: ArmName, spec: EvalSpec, adapter: Adapter | None) -> Arm:
    """Return the arm of that name; nothing is opened yet."""
    if name == "teacher":
        teacher = current_settings().teacher()
        return Arm(name, lambda: _open_teacher(spec), f"{teacher.model} at {teacher.kind}")
    if name == "adapter":
        if adapter is None:
            raise ValueError("the arm 'adapter' needs an adapter")
        return Arm(
            name,
            lambda: _open_student(spec, adapter, spec.cep),
            f"{Path(spec.student_model).name} + {adapter.id}",
        )
    variant = spec.cep if name == "student_cep" else None
    prefix = get_prefix(variant)
    label = Path(spec.student_model).name + (f" + {prefix.id}" if prefix else "")
    return Arm(name, lambda: _open_student(spec, None, variant), label)


def _open_student(spec: EvalSpec, adapter: Adapter | None, variant: Variant | None) -> Backend:
    try:
        from slm_core.backends.local import LocalModel
    except ImportError as error:
        raise MissingDependency.of_extra(
            "train", "A local model needs torch and transformers", error
        ) from error
    return LocalModel(
        spec.student_model,
        adapter.path if adapter else None,
        get_prefix(variant),
        threads=spec.threads or current_settings().torch_threads,
        batch_size=spec.evaluation.batch_size,
        usd_per_hour=spec.student_usd_per_hour,
    )


def _open_teacher(spec: EvalSpec) -> Backend:
    from slm_core.backends.openai_http import OpenAiBackend

    teacher = current_settings().teacher()
    return OpenAiBackend(
        teacher.model,
        api_key=teacher.api_key.get_secret_value(),
        base_url=teacher.endpoint or None if teacher.kind == "openai" else None,
        azure_endpoint=teacher.endpoint if teacher.kind == "azure" else None,
        api_version=teacher.api_version if teacher.kind == "azure" else None,
        concurrency=spec.teacher_concurrency,
        usd_per_million=PriceTable().usd_per_million(teacher.model, utc_now().date()),
    )
