"""The ladder's rules: which rung holds, the rate of a throttle, and when either may change.

Pure arithmetic; `enforcement` gathers what it needs. Severity only grows with spend, and nothing is relaxed while
nobody sees what is spent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from tierwise.api.namespace_budget import LadderRung
from tierwise.api.namespace_budget_status import Enforcement, LadderAction
from tierwise.core import budget as calendar
from tierwise.core.pace import Pace

RATE_BAND = Decimal("0.1")
"""A rate that differs by less from the one in force changes nothing."""
SLOWER_SECONDS = 10.0
"""Least time before a rate is lowered again."""
FASTER_SECONDS = 60.0
"""And before it is raised again."""
TIER_SECONDS = 600.0
"""A tier that a downgrade needs no more is left out after so long: in the next round it may be needed again."""
RATE_DIGITS = 3


@dataclass(frozen=True, slots=True)
class LadderMemory:
    """What a budget's ladder remembers.

    Attributes:
        allowance: what was in flight when the present rung was reached.
        decided: what gateways were last told; None: nothing.
        rated: when the rate of a throttle last changed.
        needed: tier -> when a downgrade last needed it.
        short: when the money last did not last for all that the loop would spend.
        pace: how the namespace spends.
    """

    allowance: Decimal = Decimal(0)
    decided: Enforcement | None = None
    rated: datetime | None = None
    needed: Mapping[str, datetime] = field(default_factory=dict)
    short: datetime | None = None
    pace: Pace = field(default_factory=Pace)


def climb(
    percent: Decimal, steps: Sequence[int], current: int | None, *, blind: bool, holding: Decimal | None = None
) -> int | None:
    """The rung that holds now, by its percent; None below the first.

    Args:
        percent: of the money that may be spent.
        steps: of the ladder.
        current: the rung that held.
        blind: nobody sees what is spent: no rung is left.
        holding: percent by which the present rung is judged, where that is more.
    """
    reached = calendar.rung(percent, steps, current)
    if current is None or current not in steps or (reached is not None and reached >= current):
        return reached
    stays = holding is not None and holding >= current - calendar.HYSTERESIS_PERCENT
    return current if stays or blind else reached


def actions(ladder: Sequence[LadderRung], held: int | None) -> tuple[LadderRung, ...]:
    """The rungs up to the one that holds: a throttle above a downgrade does both."""
    return tuple(step for step in ladder if held is not None and step.at_percent <= held)


def stops_at(ladder: Sequence[LadderRung]) -> int | None:
    """Percent of the first rung that denies; None: the ceiling is soft."""
    return next((step.at_percent for step in ladder if step.action is LadderAction.DENY), None)


def rate(money_per_hour: Decimal, cost_per_request: Decimal) -> Decimal:
    """Requests/s that this much money pays for, rounded down.

    Raises:
        ValueError: a request costs nothing: then no rate holds anything back.
    """
    if cost_per_request <= 0:
        raise ValueError("a request that costs nothing has no rate")
    return rounded_down(money_per_hour / 3600 / cost_per_request)


def rounded_down(value: Decimal) -> Decimal:
    """To three significant digits, in plain notation."""
    if value <= 0:
        return Decimal(0)
    exact = value.quantize(Decimal(1).scaleb(value.adjusted() - RATE_DIGITS + 1), rounding=ROUND_FLOOR)
    return Decimal(format(exact, "f"))


def paced(
    previous: Decimal | None, wanted: Decimal, *, age_seconds: float | None, admitted: float | None, blind: bool
) -> Decimal:
    """The rate from now on: the previous one, unless the wanted one is clearly another and it has held for a while.

    Args:
        previous: requests/s in force; None when the throttle begins.
        wanted: that spend what is left evenly.
        age_seconds: since when the previous one holds; None when not known.
        admitted: requests/s that got through lately; None when not known. A rate that holds nothing back need not be
            raised.
        blind: nobody sees what is spent: no rate is raised.
    """
    if previous is None:
        return wanted
    if wanted < previous * (1 - RATE_BAND):
        return wanted if age_seconds is None or age_seconds >= SLOWER_SECONDS else previous
    if blind or wanted <= previous * (1 + RATE_BAND) or age_seconds is None or age_seconds < FASTER_SECONDS:
        return previous
    binds = admitted is None or 2 * admitted >= float(previous) or wanted >= 2 * previous
    return wanted if binds else previous


def kept_tiers(
    previous: Sequence[str], needed: Sequence[str], memory: Mapping[str, datetime], now: datetime
) -> tuple[tuple[str, ...], dict[str, datetime]]:
    """Tiers that a downgrade names, and when each was last needed.

    One that is needed is named at once; one that is not is named for `TIER_SECONDS` more, so that a choice between two
    that are equally good is made once.
    """
    since = {name: memory.get(name, now) for name in previous} | dict.fromkeys(needed, now)
    if not needed:
        return tuple(sorted(previous)), since
    kept = {name: at for name, at in since.items() if now - at < timedelta(seconds=TIER_SECONDS)}
    return tuple(sorted(kept)), kept
