"""Whether a training wants GPUs, by what this machine or container was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.training.base_model import wants_gpus
from slm_core.training.spec import TrainingSpec


@pytest.mark.parametrize(
    ("files", "wanted"),
    [((), False), (("nvidiactl", "nvidia-uvm"), False), (("nvidia0",), True), (("nvidia2",), True)],
)
def test_a_container_may_hold_any_gpu(tmp_path: Path, files: tuple[str, ...], wanted: bool) -> None:
    for name in files:
        (tmp_path / name).touch()
    spec = TrainingSpec(base_model="model", device="auto")
    assert wants_gpus(spec, tmp_path) is wanted
    assert not wants_gpus(spec.model_copy(update={"device": "cpu"}), tmp_path)
    assert wants_gpus(spec.model_copy(update={"device": "cuda"}), tmp_path)
