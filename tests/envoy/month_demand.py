"""What a month of callers asks for: days, nights, weekends and bursts. Equal seeds, equal months."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from month_wire import Ask

KINDS = (("chat", 0.6), ("reason", 0.4))
CALLERS = (("app", 0.7), ("tool", 0.3))
NIGHT = 0.35
"""Of the mean day's rate."""
WEEKEND = 0.5
FAILED, STREAMED, CACHED = 0.01, 0.15, 0.3
"""Shares of requests: whose first tier fails, that are streams, whose prompt is half in the provider's cache."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Demand times `factor` from `begin` to `end`."""

    begin: datetime
    end: datetime
    factor: float


def bursts(start: datetime, days: int, seed: int) -> tuple[Burst, ...]:
    """Every other day or so, one to six hours, three- to eightfold."""
    dice = random.Random(seed)
    found = []
    for day in range(days):
        if dice.random() < 0.45:
            begin = start + timedelta(days=day, hours=dice.uniform(0, 20))
            found.append(Burst(begin, begin + timedelta(hours=dice.uniform(1, 6)), dice.uniform(3, 8)))
    return tuple(found)


def shape(now: datetime, hits: tuple[Burst, ...]) -> float:
    """Relative rate at a moment."""
    hour = now.hour + now.minute / 60
    day = NIGHT + (1 - NIGHT) * max(0.0, math.sin(math.pi * (hour - 6) / 14)) if 6 <= hour <= 20 else NIGHT
    rate = day * (WEEKEND if now.weekday() >= 5 else 1.0)
    return rate * max((one.factor for one in hits if one.begin <= now < one.end), default=1.0)


def month(
    start: datetime, days: int, step: timedelta, requests: int, seed: int, *, more_days: int = 0
) -> Iterator[list[Ask]]:
    """Requests of each step, about `requests` in `days`, and then some more days like these."""
    hits = bursts(start, days, seed)
    steps = round(timedelta(days=days + more_days) / step)
    shapes = [shape(start + number * step, hits) for number in range(steps)]
    scale = requests / sum(shapes[: round(timedelta(days=days) / step)])
    dice = random.Random(seed + 1)
    for each in shapes:
        yield [_ask(dice) for _ in range(_poisson(dice, scale * each))]


def _poisson(dice: random.Random, mean: float) -> int:
    """Knuth's method in parts, for which exp does not underflow."""
    total = 0
    while mean > 0:
        part = min(mean, 30.0)
        mean -= part
        limit, product = math.exp(-part), dice.random()
        while product > limit:
            total += 1
            product *= dice.random()
    return total


def _ask(dice: random.Random) -> Ask:
    kind = "chat" if dice.random() < KINDS[0][1] else "reason"
    caller = "app" if dice.random() < CALLERS[0][1] else "tool"
    prompt = max(16, min(3000, round(dice.lognormvariate(math.log(600), 0.5))))
    completion = max(8, min(2000, round(dice.lognormvariate(math.log(480), 0.5))))
    cached = prompt // 2 if dice.random() < CACHED else 0
    luck = dice.random()
    fate = "f" if luck < FAILED else "s" if luck < FAILED + STREAMED else ""
    return Ask(kind, caller, prompt, cached, completion, fate)
