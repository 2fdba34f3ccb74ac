"""A model of this process: a base model, with or without a LoRA adapter. Imports torch.

Answers are greedy and repeatable: the same list of requests gives the same answers on every
run. What it refuses: weights that are not what the folder claims or that lack a tensor, an
adapter made for another base model, and a prompt that is not the one the adapter was trained on.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError

from slm_core.backends.adapter_folder import read_adapter
from slm_core.backends.base import WINDOW_BATCHES, Completion, Request
from slm_core.backends.decoding import decode_greedily
from slm_core.backends.loading import device_of, load_base, load_tokenizer
from slm_core.backends.model_folder import check_model_folder, locate_model
from slm_core.backends.text_stream import StopText, TextStream
from slm_core.errors import BackendError, ConfigError, ModelError, PromptMismatch, PromptTooLong
from slm_core.prompting.prefix import ContextPrefix
from slm_core.prompting.render import Renderer
from slm_core.records import Adapter

log = logging.getLogger(__name__)


class LocalModel:
    """A causal language model that answers requests in batches, or one as a stream."""

    def __init__(
        self,
        model_path: str | Path,
        adapter_path: str | Path | None = None,
        prefix: ContextPrefix | None = None,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        batch_size: int = 32,
        max_context: int | None = None,
        usd_per_hour: float | None = None,
    ) -> None:
        """Load and check everything.

        Args:
            model_path: folder or hub id of the base model.
            adapter_path: folder of a trained adapter, with its ``slm_adapter.json``.
            prefix: context prefix (CEP) put ahead of every system prompt.
            device: ``auto`` takes a GPU when there is one.
            threads: CPU threads of torch, for the whole process; None leaves them.
            batch_size: requests decoded side by side.
            max_context: tokens of prompt and answer together; None asks the model.
            usd_per_hour: price of this machine; None leaves costs unknown.

        Raises:
            ModelError: a folder is incomplete, or not what it claims to be; or the adapter
                was made for other base weights.
            MissingDependency: a hub id without huggingface_hub.
            PromptMismatch: the adapter was trained with another template or prefix.
            ConfigError: a GPU is asked for where none is, or ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        if threads is not None:
            torch.set_num_threads(threads)
        folder = locate_model(str(model_path))
        base_sha256 = check_model_folder(folder)
        self._renderer = Renderer(load_tokenizer(folder), prefix)
        self._batch_size = batch_size
        self._usd_per_hour = usd_per_hour
        self._name = Path(model_path).name
        adapter = None
        if adapter_path is not None:
            adapter = read_adapter(Path(adapter_path))
            _check_fit(adapter, base_sha256, self._renderer.prompt_hash)
            self._name += f"+{adapter.id}"
        self._network = _load(
            folder, device_of(device), Path(adapter_path) if adapter_path else None
        )
        learned = getattr(self._network.config, "max_position_embeddings", None)
        self._context = min(n for n in (max_context, learned, sys.maxsize) if n is not None)
        log.info("model loaded name=%s device=%s", self._name, self._network.device)

    @property
    def model(self) -> str:
        """Name for reports: the base model's, and the adapter's id."""
        return self._name

    @property
    def prompt_hash(self) -> str:
        """Hash of chat template, prefix and tool format."""
        return self._renderer.prompt_hash

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._context

    def prompt_ids(self, request: Request) -> list[int]:
        """Return the token ids that the model continues.

        Raises:
            PromptTooLong: they leave no room for an answer.
        """
        ids = self._renderer.prompt_ids(request.prompt, request.tools)
        if len(ids) >= self._context:
            raise PromptTooLong(
                "The prompt does not fit the model's context; shorten it or offer fewer tools.",
                prompt_tokens=len(ids),
                context=self._context,
            )
        return ids

    def complete(self, requests: Sequence[Request], *, max_tokens: int) -> Iterator[Completion]:
        """Yield one answer per request, in order; a prompt that does not fit yields its error.

        ``seconds`` is the time of the whole batch that a request was part of.

        Raises:
            BackendError: the GPU's memory does not hold a batch.
        """
        window = self._batch_size * WINDOW_BATCHES
        for start in range(0, len(requests), window):
            yield from self._complete_window(requests[start : start + window], max_tokens)

    def stream(
        self, request: Request, max_tokens: int, stop: Sequence[str] = ()
    ) -> Generator[str, None, Completion]:
        """Yield the answer's text as it grows; the generator's value is the whole Completion.

        A character whose bytes come in several tokens is yielded once, complete. The answer
        also ends before the first of the strings ``stop``.

        Raises:
            PromptTooLong: the prompt does not fit.
        """
        began = time.monotonic()
        prompt = self.prompt_ids(request)
        characters, shown = TextStream(self._renderer.decode), StopText(stop)
        answer: list[int] = []
        text = ""
        for pairs in self._decode([prompt], [self._limit(prompt, max_tokens)]):
            answer.append(pairs[0][1])
            if piece := shown.push(characters.push(answer[-1])):
                text += piece
                yield piece
            if shown.found:
                break
        else:
            if piece := shown.push(characters.rest()) + shown.rest():
                text += piece
                yield piece
        seconds = time.monotonic() - began
        completion = self._completion(prompt, answer, seconds, seconds)
        return completion._replace(
            text=text, finish_reason="stop" if shown.found else completion.finish_reason
        )

    def close(self) -> None:
        """Free the weights; the model cannot be asked again."""
        self._network = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _complete_window(self, requests: Sequence[Request], max_tokens: int) -> list[Completion]:
        answers: dict[int, Completion] = {}
        prompts: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            try:
                prompts[number] = self.prompt_ids(request)
            except PromptTooLong as error:
                answers[number] = Completion(
                    "", "error", 0, 0, 0.0, error=str(error), permanent=True
                )
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(prompts, key=lambda number: len(prompts[number]))
        for start in range(0, len(order), self._batch_size):
            numbers = order[start : start + self._batch_size]
            batch = [prompts[number] for number in numbers]
            answers.update(zip(numbers, self._complete_batch(batch, max_tokens), strict=True))
        return [answers[number] for number in range(len(requests))]

    def _complete_batch(self, prompts: list[list[int]], max_tokens: int) -> list[Completion]:
        began = time.monotonic()
        answers: list[list[int]] = [[] for _ in prompts]
        for pairs in self._decode(prompts, [self._limit(p, max_tokens) for p in prompts]):
            for row, token in pairs:
                answers[row].append(token)
        seconds = time.monotonic() - began
        share = seconds / len(prompts)
        return [
            self._completion(prompt, answer, seconds, share)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _decode(
        self, prompts: list[list[int]], limits: list[int]
    ) -> Iterator[list[tuple[int, int]]]:
        try:
            yield from decode_greedily(
                self._network, prompts, limits=limits, end_ids=self._renderer.end_ids
            )
        except torch.OutOfMemoryError as error:
            raise BackendError(
                "The GPU's memory does not hold this batch; lower batch_size.", rows=len(prompts)
            ) from error

    def _limit(self, prompt: list[int], max_tokens: int) -> int:
        return min(max_tokens, self._context - len(prompt))

    def _completion(
        self, prompt: list[int], answer: list[int], seconds: float, machine_seconds: float
    ) -> Completion:
        rate = self._usd_per_hour
        ended = answer[-1] in self._renderer.end_ids
        return Completion(
            text=self._renderer.decode(answer),
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(answer),
            seconds=seconds,
            # 10^9 nano-dollars, 3,600 seconds; a batch shares its machine's time.
            cost_nanousd=None if rate is None else round(machine_seconds * rate * 1e9 / 3600),
        )


def _check_fit(adapter: Adapter, base_sha256: str, prompt_hash: str) -> None:
    if adapter.base_sha256 != base_sha256:
        raise ModelError(
            f"Adapter {adapter.id} was trained on other base weights ({adapter.base_model}).",
            expected=adapter.base_sha256,
            found=base_sha256,
        )
    if adapter.prompt_hash != prompt_hash:
        raise PromptMismatch(
            f"Adapter {adapter.id} was trained on another prompt: chat template, tool format or "
            f"context prefix differ (it was trained with {adapter.cep_id or 'no prefix'}).",
            expected=adapter.prompt_hash,
            found=prompt_hash,
        )


def _load(folder: Path, device: torch.device, adapter_path: Path | None) -> Any:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    network = load_base(folder, dtype)
    if adapter_path is not None:
        from peft import PeftModel

        try:
            adapted = PeftModel.from_pretrained(network, str(adapter_path))
            # In float32 a merge loses nothing that matters and saves two products per layer;
            # in bfloat16 it would round the update away.
            network = cast(Any, adapted).merge_and_unload() if dtype == torch.float32 else adapted
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"The adapter in {adapter_path} cannot be loaded: {error}") from error
    return network.to(device).eval()
