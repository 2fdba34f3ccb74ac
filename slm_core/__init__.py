"""SLM Swap: replace a hosted LLM with a small local model, and prove that it is safe.

Importing this package imports nothing else; pick the stage you need, for example
``from slm_core.capture import WorkflowTracer``.
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
