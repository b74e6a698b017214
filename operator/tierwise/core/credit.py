"""A floor that holds on average: requests that were answered better are credit, and others may be worse by that.

Quality costs more in some hours than in others: prompts and answers are longer, or one more replica would have to
start. So the planner weighs quality at one price, the class's *worth* of it, which moves slowly: it buys more than the
floor asks for while that is cheap, and less while it is dear. The worth is the multiplier of the floor's constraint
over all requests (dual ascent, as pacing of budgets does it: Balseiro and Gur, "Learning in Repeated Auctions with
Budgets", Management Science 65(9), 2019): it rises while there is less credit than is aimed at, and falls while there
is more.

Credit is earned before it is spent. Nothing is borrowed, nothing outlives the operator's process: a restart begins with
the floor at all times. A part of it is kept for bursts, where these may spend it: while there is some, tiers below the
floor too may take what a saturated tier passes on, as the few requests of bursts are where quality is dearest. Scores
and floors are in [0, 1]; points are requests times score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

TARGET_HOURS = 3.0
"""Credit that is aimed at: so long at the class's `swing`."""

SPEND_HOURS = 0.5
"""What there is may be spent within so long, not at once: rounds are some seconds apart, and demand may have grown."""

RESERVE = 0.05
"""Part of the credit that is aimed at, kept for what saturated tiers pass on to tiers below the floor: bought at what
quality usually costs, and spent on nothing else."""

_RELIEVES = 0.02
"""So much of the credit that is aimed at has to be there before tiers below the floor relieve others again."""

INDIFFERENT = 0.15
"""Prices of quality this near to its worth, as a share, leave mixes at the floor: lest replicas come and go for it."""

_ADAPT_SECONDS = 12 * 3600.0
"""With no credit at all the worth rises by the factor e in this time."""

_GAIN = 0.03
"""And at once by this share."""

_RATE_SECONDS, _PRICE_SECONDS = 4 * 3600.0, 24 * 3600.0
"""Time constants of the class's mean rate and of the price of quality: that has its days."""

_NEW_SECONDS, _FIRST_SECONDS = 300.0, 1800.0
"""Prices of the first minutes do not count, and so long quality is worth its mean price: what tiers carry is only just
being learnt."""

_BAND = 4.0
"""The worth stays within this factor of the mean price of the last hours: prices can change for good."""

_INTERVALS = 4
"""Moves that what is left has to last for."""

_STEPS = 50
"""Of the swing, by which the floor of the moment gives way."""

_DEBT = 0.02
"""So much less than the reserve, as a part of the credit that is aimed at, and it is made up for."""

_FULL, _EMPTY = 2.0, 3.0
"""Multiples of the credit that is aimed at from which on more of it is worth less, and nothing."""


@dataclass(frozen=True, slots=True)
class Credit:
    """Of one class whose floor holds on average.

    Attributes:
        floor: that it is counted from; with another floor counting begins again.
        swing: of the class (see `swing`); 0: there is nothing to be earned.
        points: sum of score less floor over all requests.
        counted: until when.
        rate: mean requests/s of the last hours.
        price: what a point of quality costs where the floor holds at all times, currency units per request and unit of
            score, mean of the last hours; None until known.
        since, priced: when it was first and last looked at.
        worth: what the planner pays for it, in the same unit.
        bursts: whether tiers below the floor may relieve others: a reserve is kept for it.
    """

    floor: float
    swing: float = 0.0
    points: float = 0.0
    counted: datetime | None = None
    rate: float = 0.0
    price: float | None = None
    since: datetime | None = None
    priced: datetime | None = None
    worth: float = 0.0
    bursts: bool = True


def swing(floor: float, worst: float, best: float) -> float:
    """Most that mixes can be above the floor in one half of the time and below it in the other, on average.

    With the best mix `up` above the floor and the worst `down` below it, it is `up * down / (up + down)`; 0 where the
    floor asks for nothing or can not be exceeded.
    """
    up, down = best - floor, floor - worst
    return up * down / (up + down) if up > 0 and down > 0 else 0.0


def counted(
    before: Credit | None,
    floor: float,
    span: tuple[float, float],
    scores: Mapping[str, float],
    rates: Mapping[str, float],
    *,
    now: datetime,
    window_seconds: float,
    bursts: bool = True,
) -> Credit:
    """The credit after one more answer of Prometheus about the class.

    Args:
        before: None at first.
        floor: least mean score.
        span: mean scores of the worst and of the best mix that the class may have.
        scores: tier -> score. A tier whose score is not known counts as none.
        rates: tier -> requests/s, measured in the last `window_seconds`.
        now: when Prometheus was asked. What lies between the answer before and the window is not known: nothing is
            earned in it, but spent as in the window.
        window_seconds: that the rates cover.
        bursts: see `Credit.bursts`.
    """
    held = before if before is not None and belongs(before, floor) else Credit(floor)
    elapsed = (now - held.counted).total_seconds() if held.counted is not None else 0.0
    total = sum(rates.values())
    rate = held.rate + (total - held.rate) * min(1.0, elapsed / _RATE_SECONDS) if held.rate > 0 else total
    gained = sum(each * (scores.get(tier, 0.0) - floor) for tier, each in rates.items())
    found = replace(held, swing=swing(floor, *span), rate=rate, counted=now, bursts=bursts)
    aim = _aim(found)
    # What a fault or a ceiling took is made up for as far as it is no more than what is saved up anyway.
    points = held.points + gained * (elapsed if gained < 0 else min(elapsed, window_seconds))
    found = replace(found, points=min(max(points, -aim), _EMPTY * aim))
    worth = found.worth * math.exp(_short(found) * elapsed / _ADAPT_SECONDS)
    return replace(found, worth=min(worth, (found.price or 0.0) * (1 + INDIFFERENT)))


def belongs(credit: Credit, floor: float) -> bool:
    """Whether it was counted from this floor."""
    return abs(credit.floor - floor) < 1e-9


def priced(credit: Credit, price: float, now: datetime) -> Credit:
    """The credit with what a point of quality costs now (see `Credit.price`)."""
    if credit.price is None or credit.since is None or credit.priced is None:
        return replace(credit, price=price, since=now, priced=now, worth=price)
    passed, known = ((now - time).total_seconds() for time in (credit.priced, credit.since))
    if passed <= 0:
        return credit
    # The newest until capacities and tokens are learnt, then the plain mean: no price is better than the next one.
    # One far off is no price but a shortage.
    gain = (
        1.0
        if known < _NEW_SECONDS
        else min(1.0, max(passed / _PRICE_SECONDS, passed / (known - _NEW_SECONDS + passed)))
    )
    usual = price if known < _FIRST_SECONDS else min(price, _BAND * credit.price)
    mean = credit.price + (usual - credit.price) * gain
    most = mean * (1 + INDIFFERENT)
    worth = mean if known < _FIRST_SECONDS else min(max(credit.worth, mean / _BAND), most)
    return replace(credit, price=mean, priced=now, worth=worth)


def least(credit: Credit, rate: float, interval_seconds: float = 0.0) -> float:
    """The least mean score that a mix may have now: the floor less what may be spent.

    Args:
        credit: of the class.
        rate: requests/s.
        interval_seconds: between two moves: what is left has to last for some of them.
    """
    points = credit.points - _reserve(credit)
    if credit.price is None or points <= 0 or rate <= 0 or credit.swing <= 0:
        return credit.floor
    seconds = max(3600 * SPEND_HOURS, _INTERVALS * interval_seconds)
    # By steps, lest every round moves something.
    step = credit.swing / _STEPS
    return credit.floor - step * math.floor(points / (rate * seconds) / step)


def worth(credit: Credit) -> tuple[float, float]:
    """What one unit of score is worth now, below the floor and above it, currency units per request.

    Less, the more there is already; and less above the floor than below it: a move away from it has to be worth one.
    """
    aim = _aim(credit)
    if aim <= 0 or credit.price is None:
        return 0.0, 0.0
    most = credit.price * (1 + INDIFFERENT)
    if credit.points < _reserve(credit) - _DEBT * aim:
        return most, most  # the reserve, and what is owed, are bought at what it usually costs
    left = min(1.0, max(0.0, (_EMPTY - credit.points / aim) / (_EMPTY - _FULL)))
    # Nothing is saved up at what quality usually costs: where its price stands still, mixes stay at the floor.
    value = min(credit.worth * math.exp(_GAIN * _short(credit)), most) * left
    return value * (1 + INDIFFERENT), value * (1 - INDIFFERENT)


def relieves(credit: Credit | None, *, before: bool) -> bool:
    """Whether tiers below the floor may take what saturated tiers pass on.

    Args:
        credit: of the class; None: nothing was counted yet.
        before: whether they might until now.
    """
    aim = _aim(credit) if credit is not None else 0.0
    if credit is None or credit.price is None or aim <= 0:
        return False
    return credit.points > (0.0 if before else _RELIEVES * aim)


def at_rest(credit: Credit) -> Credit:
    """The credit with its reserve, and nothing beside: mixes stay at the floor."""
    return replace(credit, points=_reserve(credit))


def _aim(credit: Credit) -> float:
    return credit.rate * 3600 * TARGET_HOURS * credit.swing


def _reserve(credit: Credit) -> float:
    return RESERVE * _aim(credit) if credit.bursts else 0.0


def _short(credit: Credit) -> float:
    """How much there is too little, in shares of what is aimed at, from -1 to 1; 0 where nothing is."""
    aim = _aim(credit)
    return min(1.0, max(-1.0, 1 - credit.points / aim)) if aim > 0 else 0.0
