"""Lengths are those that training sees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slm_core.backends.token_lengths import token_counter
from slm_core.errors import MissingDependency, ModelError
from slm_core.prompting.prefix import PREFIXES
from slm_core.records import TRACKS
from slm_core.testing.workload import generate


@pytest.mark.parametrize("variant", [None, "compact"])
def test_prompt_answer_and_prefix_are_counted_as_training_renders_them(
    tiny_model: Path, variant
) -> None:
    from transformers import AutoTokenizer

    from slm_core.prompting.render import Renderer

    prefix = None if variant is None else PREFIXES[variant]
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model), prefix)
    count = token_counter(str(tiny_model), variant)
    for track in TRACKS:
        for one in generate(3, 4, "test", track):
            assert count(one) == len(renderer.example(one.prompt, one.tools, one.completion).ids)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=str(tmp_path)):
        token_counter(str(tmp_path), None)
    with pytest.raises(ModelError, match="does not exist"):
        token_counter("./nowhere", None)


def test_without_transformers_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"\.\[train\]"):
        token_counter("assets/nano-student", None)
