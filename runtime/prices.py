"""What tokens cost: the pool file's own prices, or else what is published of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from .worker import Usage

_MILLION = 1_000_000
_FREE = Decimal(0)

Cost = Callable[[Usage], Decimal]
"""Dollars for the tokens of one call."""


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    """Of input that the server had cached; as other input if None."""

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for one call, to the last digit."""
        cached = self.input if self.cached is None else self.cached
        fresh = usage.input_tokens - usage.cached_tokens
        dear = fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output
        return dear / _MILLION


def free(usage: Usage) -> Decimal:
    """The cost of what runs in this process."""
    return _FREE


def published(model: str, url: str) -> tuple[Cost | None, str]:
    """Look up what is known of a model at an address.

    Returns:
        The cost, with the model's tiers, and the name it is known by; None if nothing is known.
    """
    from genai_prices import Usage as Tokens  # its own updates stay off: they are never started
    from genai_prices import calc_price

    def cost(usage: Usage) -> Decimal:
        tokens = Tokens(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
        )
        return calc_price(tokens, model, provider_api_url=url).total_price

    try:
        found = calc_price(Tokens(input_tokens=1, output_tokens=1), model, provider_api_url=url)
    except LookupError:
        return None, "unknown"
    return cost, f"{found.provider.id} {found.model.id}"
