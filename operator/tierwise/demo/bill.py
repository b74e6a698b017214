"""The bill of one arm: replica-seconds of observed Pods and tokens of answers, at the declared prices. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tierwise.demo import pods, records
from tierwise.demo.pods import PodLife
from tierwise.demo.records import Served
from tierwise.demo.terms import Terms

SECONDS_PER_HOUR = 3600
MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class TierBill:
    """What one tier cost.

    Attributes:
        tier: name.
        requests: answered by it.
        replica_seconds: billed; of these, `starting_seconds` before a replica was ready.
        prompt_tokens, completion_tokens: of requests whose usage is known; `unknown_usage` others are not in the bill.
        replica_cost, token_cost: in the terms' currency.
    """

    tier: str
    requests: int
    replica_seconds: float
    starting_seconds: float
    prompt_tokens: int
    completion_tokens: int
    unknown_usage: int
    replica_cost: Decimal
    token_cost: Decimal

    @property
    def cost(self) -> Decimal:
        """Replicas and tokens."""
        return self.replica_cost + self.token_cost


@dataclass(frozen=True, slots=True)
class Bill:
    """What one arm cost in a window of `seconds`."""

    tiers: tuple[TierBill, ...]
    seconds: float

    @property
    def cost(self) -> Decimal:
        """All tiers."""
        return sum((tier.cost for tier in self.tiers), Decimal(0))

    @property
    def cost_per_hour(self) -> Decimal:
        """At this window's mean."""
        return self.cost * SECONDS_PER_HOUR / Decimal(str(self.seconds))

    @property
    def replica_hours(self) -> float:
        """Of all tiers."""
        return sum(tier.replica_seconds for tier in self.tiers) / SECONDS_PER_HOUR

    @property
    def complete(self) -> bool:
        """No request with unknown usage on a tier that is paid per token."""
        return not any(tier.unknown_usage and not tier.replica_seconds for tier in self.tiers)


def token_price(terms: Terms, tier: str, prompt_tokens: int, completion_tokens: int) -> Decimal:
    """Price of tokens on a tier: nothing in-cluster, where replicas are paid instead."""
    agreed = terms.tiers[tier]
    if agreed.input_per_million is None or agreed.output_per_million is None:
        return Decimal(0)
    return (prompt_tokens * agreed.input_per_million + completion_tokens * agreed.output_per_million) / MILLION


def make(
    terms: Terms,
    namespace: str,
    lives: Iterable[PodLife],
    served: Sequence[Served],
    *,
    since_seconds: float,
    until_seconds: float,
) -> Bill:
    """The bill of one arm.

    Replicas are billed in the window; tokens of every answered request, whenever it ended.

    Args:
        terms: prices.
        namespace: whose Pods.
        lives: all Pods seen, of any namespace.
        served: the arm's requests.
        since_seconds: start of the window.
        until_seconds: its end.
    """
    kept = tuple(lives)
    seen = {life.key.tier for life in kept if life.key.namespace == namespace}
    seen |= {record.tier for record in served if record.tier is not None}
    bills = []
    for name in sorted(seen & set(terms.tiers)):
        mine = pods.of_tier(kept, namespace, name)
        answered = [record for record in served if record.ok and record.tier == name]
        seconds = pods.replica_seconds(mine, since_seconds, until_seconds)
        prompt, completion, unknown = records.tokens(answered)
        price = terms.tiers[name].per_replica_hour
        replica_cost = Decimal(0) if price is None else price * Decimal(str(seconds)) / SECONDS_PER_HOUR
        bills.append(
            TierBill(
                tier=name,
                requests=len(answered),
                replica_seconds=seconds,
                starting_seconds=pods.starting_seconds(mine, since_seconds, until_seconds),
                prompt_tokens=prompt,
                completion_tokens=completion,
                unknown_usage=unknown,
                replica_cost=replica_cost,
                token_cost=token_price(terms, name, prompt, completion),
            )
        )
    return Bill(tuple(bills), until_seconds - since_seconds)
