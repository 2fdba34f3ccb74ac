from datetime import date

import pytest

from slm_core.capture.prices import LIST_PRICES, Price, PriceTable

TODAY = date(2026, 1, 1)


def test_cost_is_exact_in_nano_dollars() -> None:
    # 0.15 and 0.60 dollars per million: 150 and 600 nano-dollars per token.
    assert PriceTable().nanousd("nano-teacher", 7, 3, TODAY) == 7 * 150 + 3 * 600


def test_fractions_of_a_nano_dollar_are_rounded_once() -> None:
    price = Price(
        model="m",
        effective_from=date(2025, 1, 1),
        input_usd_per_million=0.0004,
        output_usd_per_million=0.0004,
    )
    assert PriceTable([price]).nanousd("m", 1, 1, TODAY) == 1


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("no-such-model", (1, 1)),
        ("gpt-4o-audio-preview", (1, 1)),
        ("gpt-4o", (None, 1)),
        ("gpt-4o", (1, None)),
    ],
)
def test_what_is_unknown_costs_none(model: str, tokens: tuple[int | None, int | None]) -> None:
    assert PriceTable().nanousd(model, *tokens, TODAY) is None


def test_a_snapshot_costs_what_its_model_does() -> None:
    table = PriceTable()
    assert table.nanousd("gpt-4o-mini-2024-07-18", 10, 10, TODAY) == table.nanousd(
        "gpt-4o-mini", 10, 10, TODAY
    )


def test_the_price_of_the_day_counts() -> None:
    table = PriceTable()
    assert table.nanousd("gpt-4o", 10, 0, date(2024, 4, 1)) is None
    assert table.nanousd("gpt-4o", 10, 0, date(2024, 6, 1)) == 50_000
    assert table.nanousd("gpt-4o", 10, 0, TODAY) == 25_000


def test_own_prices_replace_listed_ones() -> None:
    own = Price(
        model="gpt-4o",
        effective_from=date(2020, 1, 1),
        input_usd_per_million=1,
        output_usd_per_million=1,
    )
    assert PriceTable([own]).nanousd("gpt-4o", 10, 0, TODAY) == 10_000


def test_zero_tokens_cost_nothing() -> None:
    assert PriceTable().nanousd("gpt-4o", 0, 0, TODAY) == 0


def test_listed_prices_are_sane() -> None:
    assert all(0 < p.input_usd_per_million < p.output_usd_per_million < 100 for p in LIST_PRICES)
