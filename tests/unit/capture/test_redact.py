import re
import time

import orjson
import pytest

from slm_core.capture.redact import REDACTED, UNCHECKED, Redactor, Rule, may_hold_secret

SECRETS = [
    "sk-" + "a1B2" * 12,
    "sk-proj-" + "Ab-_9" * 10,
    "sk-ant-api03-" + "x" * 40,
    "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "ghp_" + "a" * 36,
    "github_pat_" + "1" * 22 + "_" + "b" * 59,
    "xoxb-" + "123456789012-abcdefGHIJKL",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "S" * 35,
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0.abc-_",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\ncut off",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_go_and_the_rest_stays(secret: str) -> None:
    text = f'My key is "{secret}"'
    assert may_hold_secret(orjson.dumps({"content": text}))
    redacted = Redactor(("secrets",)).apply(text)
    assert redacted.startswith(f'My key is "{REDACTED}')
    assert not any(part in redacted for part in secret.splitlines())


def test_bearer_tokens_keep_their_scheme() -> None:
    header = "Authorization: Bearer " + "a" * 20 + ".b/c+d=="
    assert Redactor(("secrets",)).apply(header) == f"Authorization: Bearer {REDACTED}"


@pytest.mark.parametrize(
    "text",
    [
        "task-management-configuration-service",
        "sk-short",
        "a bearer of news",
        "get_the_current_weather_forecast_for_city",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "https://example.org/a/very/long/path/that/goes/on/and/on",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor(("secrets",)).apply(text) == text


def test_only_secrets_are_on_by_default_kinds() -> None:
    text = "ann@example.org pays with 4111 1111 1111 1111"
    assert Redactor(("secrets",)).apply(text) == text
    assert Redactor(("email", "card")).apply(text) == f"{REDACTED} pays with {REDACTED}"


def test_long_numbers_that_are_no_cards_stay() -> None:
    assert Redactor(("card",)).apply("order 4111 1111 1111 1112") == "order 4111 1111 1111 1112"


def test_own_patterns_reach_every_text_but_no_key() -> None:
    value = {"patient-7": ["patient-7", {"x": ("patient-12", 7, None)}]}
    redactor = Redactor((), [r"patient-\d+"])
    assert redactor.concerns(orjson.dumps(value))
    assert redactor.apply(value) == {"patient-7": [REDACTED, {"x": [REDACTED, 7, None]}]}


def test_no_rules_concern_nothing() -> None:
    assert not Redactor(()).concerns(b'"sk-' + b"a" * 48 + b'"')


def test_a_text_that_cannot_be_checked_is_replaced() -> None:
    def fail(match: re.Match[str]) -> str:
        raise RuntimeError(match[0])

    redactor = Redactor(())
    redactor.rules = (Rule(re.compile("secret"), fail),)
    assert redactor.apply(["a secret", "no harm"]) == [UNCHECKED, "no harm"]


@pytest.mark.parametrize("unit", ["eyJ", "sk-", "a", "a.", "1", "Bearer ", "-----BEGIN A ", "a@"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    redactor = Redactor(("secrets", "email", "card"))
    text = unit * (300_000 // len(unit))
    begun = time.perf_counter()
    redactor.apply(text)
    assert time.perf_counter() - begun < 3


def test_lone_surrogates_are_no_obstacle() -> None:
    assert Redactor(("secrets",)).apply("\ud800 " + "sk-" + "a" * 30) == f"\ud800 {REDACTED}"
