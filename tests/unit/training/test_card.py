"""Cards: they state what is known, say what is not, and keep paths and rows to themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from slm_core.records import Adapter
from slm_core.testing.records import (
    make_adapter,
    make_arm,
    make_dataset,
    make_decision,
    make_evaluation,
)
from slm_core.training.card import adapter_card, licence_of, merged_card, public_name
from slm_core.training.hub import public_record

SECRET = "/home/someone/secret-project"


def private_adapter() -> Adapter:
    return make_adapter(
        path=f"{SECRET}/runs/1/adapter",
        base_model=f"{SECRET}/models/llama-8b",
        summary={
            "steps": 100,
            "epochs": 3,
            "examples": 160,
            "tokens": 90_000,
            "supervised_tokens": 24_310,
            "first_loss": 2.5,
            "last_loss": 0.25,
            "val_loss": None,
            "stop_reason": "epochs done",
            "quantization": "nf4",
            "too_long_ids": ["row-of-a-customer"],
            "recoveries": [f"wrote {SECRET}/log"],
            "notes": ["step 7: words"],
            "faults": {"hung": 1},
            "dropped": {"too_long": 1},
        },
    )


def front_matter(card: str) -> dict[str, object]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("gpt2", "gpt2"),
        ("/data/models/llama", "llama"),
        ("../models/llama/", "llama"),
        ("~/llama", "llama"),
        ("a/b/c", "c"),
    ],
)
def test_a_path_is_not_shown(given: str, shown: str) -> None:
    assert public_name(given) == shown


def test_a_folder_of_two_parts_is_a_path_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("mine/llama") == "llama"


def test_an_adapter_card_says_what_it_is_and_how_to_load_it() -> None:
    adapter = private_adapter()
    card = adapter_card(
        adapter,
        base_model="meta-llama/Llama-3.1-8B",
        base_licence="llama3.1",
        rank=12,
        dataset=make_dataset(),
        evaluations=[make_evaluation()],
        decisions=[make_decision("PARTIAL")],
        repo="me/my-adapter",
    )
    head = front_matter(card)
    assert (head["base_model"], head["license"]) == ("meta-llama/Llama-3.1-8B", "llama3.1")
    assert head["library_name"] == "peft"
    for fact in ("24,310", "2.5000, 0.2500", "160 train, 20 val, 100 test", "**PARTIAL**", "nf4"):
        assert fact in card, fact
    assert 'PeftModel.from_pretrained(base, "me/my-adapter")' in card
    # vLLM takes no rank of 12; 16 is the next that it does.
    assert "--enable-lora --max-lora-rank 16 --lora-modules slm=me/my-adapter" in card
    arm = make_arm("toolcall", "adapter")
    name, metric = next(iter(arm.metrics.items()))
    assert f"| toolcall | adapter | {name} | {metric.value:.3f}" in card


def test_what_is_not_known_is_called_unknown() -> None:
    card = adapter_card(make_adapter(base_model="/models/llama", summary={}))
    assert "see the base model's own card" in card
    assert "has not been evaluated" in card
    assert "| loss, first and last | unknown, unknown |" in card
    assert "base_model" not in front_matter(card)


def test_neither_card_nor_record_tells_of_this_machine_or_the_rows() -> None:
    adapter = private_adapter()
    for text in (
        adapter_card(adapter, dataset=make_dataset(path=f"{SECRET}/data")),
        merged_card(adapter, dtype="bfloat16", from_nf4=True, check=CHECK, forced=True),
        public_record(adapter).model_dump_json(),
    ):
        assert "someone" not in text
        assert "customer" not in text
    kept = public_record(adapter).summary
    assert kept["faults"] == {"hung": 1}
    assert (kept["stop_reason"], kept["quantization"], kept["val_loss"]) == (
        "epochs done",
        "nf4",
        None,
    )


CHECK = {
    "prompts": 4,
    "rows": 20,
    "positions": 900,
    "equal_tokens": 0.995,
    "mean_difference": 0.01,
    "max_difference": 0.2,
    "perplexity_before": 1.25,
    "perplexity_after": None,
}


def test_a_merged_card_has_the_comparison_and_owns_up_to_force() -> None:
    card = merged_card(
        private_adapter(), dtype="bfloat16", from_nf4=True, check=CHECK, forced=False
    )
    assert "99.50%" in card
    assert "1.2500, unknown" in card
    assert "4-bit NF4 weights" in card
    assert "by force" not in card
    forced = merged_card(private_adapter(), dtype="x", from_nf4=False, check=CHECK, forced=True)
    assert "by force" in forced


def test_the_licence_is_read_from_the_models_own_card(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    card = tmp_path / "README.md"
    card.write_text("---\nlanguage: en\nlicense: 'apache-2.0'\n---\nlicense: wrong\n")
    assert licence_of(tmp_path) == "apache-2.0"
    card.write_text("---\nlanguage: en\n---\nlicense: wrong\n")
    assert licence_of(tmp_path) is None
    card.write_text("license: wrong\n")
    assert licence_of(tmp_path) is None
