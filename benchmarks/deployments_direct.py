"""Call the body of a flow without Prefect, and print its seconds: for deployments.py.

python benchmarks/deployments_direct.py flows/evaluate_model.py:evaluate_model < parameters.json

Tasks become plain calls and artifacts are not made; everything else is what a flow run does:
the same stages, store, files and traces. Start of the interpreter and imports do not count, as
they do not in a flow run.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import prefect.artifacts
    from prefect import Task

    def call(task: Task[..., Any], *args: Any, return_state: bool = False, **kwargs: Any) -> Any:
        return task.fn(*args, **kwargs)

    Task.__call__ = call  # type: ignore[method-assign]
    for name in dir(prefect.artifacts):
        if name.startswith(("create_", "update_")):
            setattr(prefect.artifacts, name, lambda *_, **__: uuid4())
    file, function = sys.argv[1].split(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
    # As the engine does: what a form sent becomes the types that the function takes.
    parameters = flow.validate_parameters(json.load(sys.stdin))
    began = time.monotonic()
    flow.fn(**parameters)
    sys.stdout.write(json.dumps({"seconds": time.monotonic() - began}) + "\n")


if __name__ == "__main__":
    main()
