"""Fine-tune a LoRA adapter on a dataset; the work happens in a process of its own."""

from slm_core.training.spec import TrainingSpec
from slm_core.training.train import train

__all__ = ["TrainingSpec", "train"]
