"""What a tier costs: per hour, per million tokens, for one token more, and from which rate on it is the cheaper one.

Every figure is None where a price or a usage is unknown. A figure is `measured` when price and use are known,
`estimated` when a learnt capacity enters.
"""

from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class TierCost:
    """A tier's cost now, in its price's currency.

    Attributes:
        per_hour: replicas that exist times their price, or tokens/s times theirs.
        per_million_tokens: `per_hour` over the tokens of an hour; None while there are none.
        marginal_per_million_tokens: of one million tokens more: 0 while running replicas have room.
        break_even_requests_per_second: rate from which one replica is cheaper than the next dearer way to serve the
            same.
    """

    per_hour: Decimal | None = None
    per_million_tokens: Decimal | None = None
    marginal_per_million_tokens: Decimal | None = None
    break_even_requests_per_second: Decimal | None = None


def decimal(value: float) -> Decimal:
    """A measured float as Decimal, without binary noise beyond nine significant digits."""
    return Decimal(f"{value:.9g}")


def in_cluster(
    *,
    price_per_hour: Decimal | None,
    replicas: int,
    tokens_per_second: float | None,
    utilisation: float | None,
    capacity_tokens_per_second: float | None,
) -> TierCost:
    """Cost of an in-cluster tier.

    Args:
        price_per_hour: of one replica.
        replicas: that exist, starting ones included.
        tokens_per_second: prompt and completion, measured; None when unknown.
        utilisation: of the safe capacity, 0 to 1 and above; None when unknown.
        capacity_tokens_per_second: of one replica at its safe load.
    """
    if price_per_hour is None:
        return TierCost()
    per_hour = price_per_hour * replicas
    per_million = None
    if tokens_per_second is not None and tokens_per_second > 0:
        per_million = per_hour * MILLION / (decimal(tokens_per_second) * 3600)
    marginal = None
    if utilisation is not None and replicas > 0 and utilisation < 1:
        marginal = Decimal(0)
    elif capacity_tokens_per_second is not None and capacity_tokens_per_second > 0:
        # Full: one more token needs its share of one more replica.
        marginal = price_per_hour * MILLION / (decimal(capacity_tokens_per_second) * 3600)
    return TierCost(per_hour=per_hour, per_million_tokens=per_million, marginal_per_million_tokens=marginal)


def external(
    *,
    input_price: Decimal | None,
    output_price: Decimal | None,
    prompt_tokens_per_second: float | None,
    completion_tokens_per_second: float | None,
) -> TierCost:
    """Cost of a provider at the measured token rates; prices are per million, cached input counts at the full price."""
    if input_price is None or output_price is None:
        return TierCost()
    if prompt_tokens_per_second is None or completion_tokens_per_second is None:
        return TierCost()
    prompt, completion = decimal(prompt_tokens_per_second), decimal(completion_tokens_per_second)
    per_hour = (prompt * input_price + completion * output_price) * 3600 / MILLION
    total = prompt + completion
    each = per_hour * MILLION / (total * 3600) if total > 0 else None
    return TierCost(per_hour=per_hour, per_million_tokens=each, marginal_per_million_tokens=each)


def per_request(input_price: Decimal, output_price: Decimal, prompt_tokens: float, completion_tokens: float) -> Decimal:
    """Price of one request's tokens; prices are per million."""
    return (decimal(prompt_tokens) * input_price + decimal(completion_tokens) * output_price) / MILLION


def break_even(price_per_hour: Decimal | None, other_cost_per_request: Decimal | None) -> Decimal | None:
    """Requests/s from which a replica at `price_per_hour` costs less than paying `other_cost_per_request` for each."""
    if price_per_hour is None or other_cost_per_request is None or other_cost_per_request <= 0:
        return None
    return price_per_hour / 3600 / other_cost_per_request
