"""Stage 1: capture LLM calls where they are made, and bring them into the store."""

from slm_core.capture.drain import drain_spool
from slm_core.capture.spec import CaptureSpec
from slm_core.capture.tracer import WorkflowTracer

__all__ = ["CaptureSpec", "WorkflowTracer", "drain_spool"]
