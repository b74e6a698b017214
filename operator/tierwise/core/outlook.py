"""What a budget's ladder looks at: what is spent at worst, what is spoken for, and how long the period still lasts."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.core import cost, ledger, scaling, tier_status
from tierwise.core.ledger import Account
from tierwise.core.situation import Situation, TierView

ROUND_SECONDS = 12.0
"""From a reading to the next one (10 s unless set otherwise, and jitter), and a round."""
ENFORCED_SECONDS = 1.0
"""From a decision to the last gateway that carries it out."""
ANSWER_SECONDS = 30.0
"""What running requests go on for where nothing measured it."""
MOST_ANSWER_SECONDS = 300.0
STOP_SECONDS = 60.0
"""A replica that is given up runs on until it has ended."""
GIVEN_UP_SECONDS = ROUND_SECONDS + STOP_SECONDS
"""From a reading to the end of a replica that is given up for it."""
SCRAPE_SECONDS = 15.0
"""Age of counters that were never read."""
MOST_PERCENT = Decimal(999)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One budget's figures of a round, in its currency.

    Attributes:
        ceiling: of the period.
        spent: most that can have been: counted, and bounded from above where nobody counted.
        in_flight: most that is spent without being counted yet, or before a decision of now is in force.
        committed_per_hour: what the least replicas cost; 0 where the budget may take them too.
        hours_left: of the period.
        reaction_seconds: from a request's cost to its being held back: age of the counters, the next round, gateways.
    """

    ceiling: Decimal
    spent: Decimal
    in_flight: Decimal
    committed_per_hour: Decimal
    hours_left: Decimal
    reaction_seconds: float

    @property
    def committed(self) -> Decimal:
        """What the least replicas cost until the period ends: reserved first."""
        return self.committed_per_hour * self.hours_left

    def percent(self, allowance: Decimal = Decimal(0)) -> Decimal:
        """Spend, and what is in flight, of what may be spent: the ceiling less what is committed.

        At 100 all money that is left is spoken for.

        Args:
            allowance: at least so much is taken to be in flight: what was, when the present rung was reached. Else a
                rung that stops requests would be left because they have stopped.
        """
        disposable = self.ceiling - self.committed
        if disposable <= 0:
            return MOST_PERCENT
        return min(MOST_PERCENT, 100 * (self.spent + max(self.in_flight, allowance)) / disposable)

    def left(self, stop_percent: int) -> Decimal:
        """What may still be spent, beyond what is committed, until `stop_percent` of the ceiling is."""
        return max(Decimal(0), self.ceiling * stop_percent / 100 - self.spent - self.in_flight - self.committed)

    def per_hour(self, stop_percent: int) -> Decimal:
        """That, evenly until the period ends."""
        return self.left(stop_percent) / self.hours_left if self.hours_left > 0 else Decimal(0)


def outlook(situation: Situation, budget: NamespaceBudget, account: Account) -> Outlook:
    """One budget's figures now."""
    tiers = [view for view in situation.tiers.values() if tier_status.currency(view) == budget.spec.currency]
    lag = _lag_seconds(account, situation.now, situation.settings.max_gap_seconds)
    left = max(0.0, (account.end - situation.now).total_seconds())
    return Outlook(
        ceiling=budget.spec.ceiling,
        spent=ledger.spend(account).worst,
        in_flight=sum((_in_flight(situation, view, lag, left) for view in tiers), Decimal(0)),
        committed_per_hour=sum((committed_per_hour(situation, budget, view) for view in tiers), Decimal(0)),
        hours_left=_hours(left),
        reaction_seconds=lag + ROUND_SECONDS + ENFORCED_SECONDS,
    )


def _hours(seconds: float) -> Decimal:
    return Decimal(str(round(seconds, 3))) / 3600


def committed_per_hour(situation: Situation, budget: NamespaceBudget, view: TierView) -> Decimal:
    """What a tier's least replicas cost; 0 for an external tier, and where the budget may take them too."""
    inside = view.tier.spec.in_cluster
    if inside is None or view.price_per_hour is None or budget.spec.enforce_replicas:
        return Decimal(0)
    least = inside.replicas.min if scaling.managed(situation, view.name) else max(1, inside.replicas.min)
    return least * view.price_per_hour


def _lag_seconds(account: Account, now: datetime, max_gap_seconds: float) -> float:
    """How old the newest count of tokens is. Beyond the gap the ledger bounds what providers cost by itself."""
    found = (ledger.counted_at(entry, account.seen.get(tier)) for tier, entry in account.entries.items())
    read = [moment for moment in found if moment is not None]
    if not read:
        return SCRAPE_SECONDS
    return 0.0 if account.pending else min(max(0.0, (now - max(read)).total_seconds()), max_gap_seconds)


def _in_flight(situation: Situation, view: TierView, lag_seconds: float, left_seconds: float) -> Decimal:
    """What a tier costs without being counted yet, and until a decision of now holds; or until the period ends."""
    inside = view.tier.spec.in_cluster
    if inside is not None:
        above = max(0, view.existing - inside.replicas.min)
        return above * (view.price_per_hour or Decimal(0)) * _hours(min(GIVEN_UP_SECONDS, left_seconds))
    per_hour = tier_status.tier_cost(situation, view).per_hour
    if per_hour is None:
        per_hour = _planned(situation, view)
    goes_on = ROUND_SECONDS + ENFORCED_SECONDS + _answer_seconds(situation, view)
    return per_hour * _hours(lag_seconds + min(goes_on, left_seconds))


def _planned(situation: Situation, view: TierView) -> Decimal:
    """Cost per hour of a provider whose counters are not read: the planned demand of those who use it, all of it."""
    total = Decimal(0)
    for user in situation.reaching(view.name):
        if user.demand is not None:
            each = view.cost_per_request(*user.demand.tokens_on(view.name))
            total += cost.decimal(3600 * user.demand.ahead * (each or 0.0))
    return total


def _answer_seconds(situation: Situation, view: TierView) -> float:
    """How long a request that has begun may still cost: the longest of its classes' 95th percentiles."""
    seen = [user.memory.latency.get(view.name) for user in situation.users(view.name)]
    known = [each.latency_seconds for each in seen if each is not None and each.latency_seconds is not None]
    return min(MOST_ANSWER_SECONDS, max(known, default=ANSWER_SECONDS))
