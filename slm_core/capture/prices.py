"""What a call costs: US dollars per million tokens, by model and date.

The table holds list prices without discounts for caching or batches. A contract price goes
into ``CaptureSpec.prices``. What has no price gets none: an unknown model costs None, not 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date

from slm_core.records import Record


class Price(Record):
    """Price of one model from one day on."""

    model: str
    """As the provider names it in its answer, without the date of a snapshot."""
    effective_from: date
    input_usd_per_million: float
    output_usd_per_million: float


def _price(model: str, day: str, usd_in: float, usd_out: float) -> Price:
    return Price(
        model=model,
        effective_from=date.fromisoformat(day),
        input_usd_per_million=usd_in,
        output_usd_per_million=usd_out,
    )


LIST_PRICES = (
    _price("gpt-3.5-turbo", "2024-01-25", 0.50, 1.50),
    _price("gpt-4", "2023-03-14", 30.00, 60.00),
    _price("gpt-4-turbo", "2024-04-09", 10.00, 30.00),
    _price("gpt-4o", "2024-05-13", 5.00, 15.00),
    _price("gpt-4o", "2024-10-01", 2.50, 10.00),
    _price("gpt-4o-mini", "2024-07-18", 0.15, 0.60),
    _price("gpt-4.1", "2025-04-14", 2.00, 8.00),
    _price("gpt-4.1-mini", "2025-04-14", 0.40, 1.60),
    _price("gpt-4.1-nano", "2025-04-14", 0.10, 0.40),
    _price("gpt-5", "2025-08-07", 1.25, 10.00),
    _price("gpt-5-mini", "2025-08-07", 0.25, 2.00),
    _price("gpt-5-nano", "2025-08-07", 0.05, 0.40),
    _price("o1", "2024-12-17", 15.00, 60.00),
    _price("o3", "2025-04-16", 10.00, 40.00),
    _price("o3", "2025-06-10", 2.00, 8.00),
    _price("o3-mini", "2025-01-31", 1.10, 4.40),
    _price("o4-mini", "2025-04-16", 1.10, 4.40),
    # An assumption, not an offer: the demo's teacher is priced like a small hosted model.
    _price("nano-teacher", "2024-01-01", 0.15, 0.60),
)
"""List prices of the models' makers; check them against your contract."""

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class PriceTable:
    """Looks up what a call costs."""

    def __init__(self, own: Iterable[Price] = ()) -> None:
        """Prepare the table; ``own`` prices replace the listed ones of the same model."""
        own = tuple(own)
        replaced = {price.model for price in own}
        listed = (price for price in LIST_PRICES if price.model not in replaced)
        self._prices: dict[str, list[Price]] = {}
        for price in sorted((*own, *listed), key=lambda p: p.effective_from, reverse=True):
            self._prices.setdefault(price.model, []).append(price)

    def nanousd(
        self, model: str, prompt_tokens: int | None, completion_tokens: int | None, day: date
    ) -> int | None:
        """Return the cost of one call on ``day`` in 10^-9 US dollars.

        None when the model has no price on that day, or a token count is unknown.
        """
        if prompt_tokens is None or completion_tokens is None:
            return None
        rates = self.usd_per_million(model, day)
        if rates is None:
            return None
        # 1 USD per 10^6 tokens is 1000 nano-dollars per token.
        return round(1000 * prompt_tokens * rates[0] + 1000 * completion_tokens * rates[1])

    def usd_per_million(self, model: str, day: date) -> tuple[float, float] | None:
        """Return the price of a million tokens, read and written, on ``day``; None if unknown.

        A dated snapshot (``gpt-4o-2024-08-06``) costs what its model does.
        """
        prices = self._prices.get(model) or self._prices.get(_SNAPSHOT.sub("", model), ())
        for price in prices:
            if price.effective_from <= day:
                return price.input_usd_per_million, price.output_usd_per_million
        return None
