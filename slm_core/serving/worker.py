"""One model process: ``python -m slm_core.serving.worker FD PARENT_PID MODELS DEVICE``.

It answers one request at a time, alone and on one CPU thread, so that an answer never
depends on what else the server does. It ends with its parent: when the socket closes, and
on Linux at the parent's death itself. Signals meant for the server do not reach it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, cast

from slm_core.backends.model_folder import check_model_folder, locate_model
from slm_core.errors import BackendError, SlmError
from slm_core.prompting.prefix import get_prefix
from slm_core.serving.messages import Cancel, Delta, Done, Failed, Load, ModelSource, Run
from slm_core.system.parent import die_with_parent

if TYPE_CHECKING:
    from slm_core.backends.local import LocalModel

log = logging.getLogger(__name__)


class Worker:
    """Keeps a few models and answers what comes through the connection."""

    def __init__(
        self, connection: Connection, models: int, device: Literal["auto", "cpu", "cuda"]
    ) -> None:
        self._connection = connection
        self._most = models
        self._device: Literal["auto", "cpu", "cuda"] = device
        self._models: OrderedDict[ModelSource, LocalModel] = OrderedDict()

    def serve(self) -> None:
        """Answer until the connection ends."""
        while True:
            message = self._connection.recv()
            if isinstance(message, Load | Run):
                self._connection.send(self._outcome(message))
            # A Cancel comes too late here: its answer is on the way.

    def _outcome(self, message: Load | Run) -> Done | Failed:
        try:
            model = self._model(message.source)
            return Done(None) if isinstance(message, Load) else self._answer(model, message)
        except SlmError as error:
            return Failed(error)
        except ValueError as error:
            return Failed(BackendError(f"The request cannot be put into a prompt: {error}"))

    def _answer(self, model: LocalModel, run: Run) -> Done:
        stream = model.stream(run.request, run.max_tokens, run.stop)
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                return Done(end.value)
            if self._is_cancelled(run.number):
                stream.close()
                return Done(None)
            if run.stream:
                self._connection.send(Delta(piece))

    def _is_cancelled(self, number: int) -> bool:
        while self._connection.poll():
            if self._connection.recv() == Cancel(number):
                return True
        return False

    def _model(self, source: ModelSource) -> LocalModel:
        if source in self._models:
            self._models.move_to_end(source)
            return self._models[source]
        # Before seconds of imports: the hashes are kept, so this is not done twice.
        check_model_folder(locate_model(source.model_path))
        from slm_core.backends.local import LocalModel

        if len(self._models) >= self._most:
            _, oldest = self._models.popitem(last=False)
            oldest.close()
        model = LocalModel(
            source.model_path,
            source.adapter_path,
            get_prefix(source.variant),
            device=self._device,
            threads=1,
            batch_size=1,
        )
        self._models[source] = model
        return model


def main(arguments: list[str]) -> int:
    """Serve the connection named on the command line and return the exit code."""
    descriptor, parent, models, device = arguments
    die_with_parent()
    if os.getppid() != int(parent):
        return 1
    # Ctrl-C reaches the whole group; the server finishes its answers first, then closes us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    connection = Connection(int(descriptor))
    try:
        Worker(connection, int(models), cast(Any, device)).serve()
    except (EOFError, ConnectionError):
        log.info("server closed the connection pid=%d", os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
