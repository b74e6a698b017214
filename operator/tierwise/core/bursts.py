"""How much more than the usual load a tier has to carry: its classes' last hour, told as multiples of what was usual.

Requests are slow when a burst exceeds what ready replicas carry, however low the mean is; tokens are paid by the mean.
So capacity is planned for `factor` times the level. Bursts of classes seldom coincide: the last hour is replayed with
all classes of a tier together, each window in two parts (its busiest ten seconds and the rest), at the shares in
question. From the loads that requests would have met the factor takes the one where one more replica costs what it
keeps (the newsvendor's rule); where a price is not known, the one that `MOST` of all requests meet.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from tierwise.core import inflight
from tierwise.core.demand import BURST_SECONDS, Sample

Floats = NDArray[np.float64]

MOST = 0.99
"""Share of the requests that capacity is planned for without prices; windows count by their time."""

WORTH = 9.0
"""What a request within its objective is worth, in multiples of what it costs on the reference tier."""

PRIOR = 0.2
"""Weight of what chance alone does, beside the last hour: a calm hour does not say that none will be busier."""

DISPERSION = 4.0
"""Variance of the work of so many requests, in multiples of that of a Poisson process with equal requests."""

_CHANCE = ((0.0, 0.383), (1.0, 0.4834), (2.0, 0.1212), (3.0, 0.0124))
"""Standard deviations above the mean, and their weights: the upper half of a normal distribution, in steps of one."""

_LEAST_SCALE, _MOST_SCALE = 0.02, 3.0
"""Load of an hour ago is scaled to the present level within these bounds."""

_SETTLING_SECONDS = 900.0
"""A level lags behind a step: a sample is compared with what became usual so much later, where that is more. Else the
first minutes of a step would pass for a burst of the new level."""

_LONGEST = timedelta(seconds=60)
"""A sample stands for at most so long: a gap is no observation."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One class on one tier.

    Attributes:
        samples: of the class, oldest first.
        share: of the class that goes to the tier.
        load: replicas that 1 request/s fills to the limit.
        level: requests/s of the class to plan for. present: requests/s now.
        value: currency units per hour that the class costs on its reference tier; None when that is not known.
        seconds: how long a request takes, which evens out bursts that are shorter.
        relief: currency units per hour that a replica's worth of the class costs on the tier that takes what this one
            can not carry at the moment; None where it waits.
    """

    samples: tuple[Sample, ...]
    share: float
    load: float
    level: float
    present: float
    value: float | None
    seconds: float
    relief: float | None = None


def factor(streams: Iterable[Stream], price_per_hour: float) -> float:
    """Load to have capacity for, in multiples of the streams' level; at least 1, and at least the present load.

    Args:
        streams: the classes of one tier.
        price_per_hour: currency units of one replica; 0: it is not known, and unknown is not free.
    """
    used = [each for each in streams if each.share > 0 and each.load > 0 and each.level > 0 and each.samples]
    level = sum(each.level * each.share * each.load for each in used)
    if level <= 0:
        return 1.0
    loads, weights = _seen(used, level)
    chance, chances = _by_chance(used, level)
    loads = np.concatenate((loads / level, chance))
    weights = np.concatenate((weights * (1 - PRIOR) / weights.sum(), chances * PRIOR))
    order = np.argsort(loads, kind="stable")
    loads, below = loads[order], np.cumsum(weights[order])
    last = int(np.searchsorted(below, MOST - 1e-9))
    present = sum(each.present * each.share * each.load for each in used)
    if all(each.relief is not None for each in used):
        relief = sum(each.level * each.share * each.load * (each.relief or 0.0) for each in used) / level
        return max(_relieved(loads, weights[order], price_per_hour, relief), present / level)
    values = [each.value for each in used if each.value is not None]
    if len(values) == len(used) and sum(values) > 0 and price_per_hour > 0:
        value = sum(each.share * (each.value or 0.0) for each in used)
        cost = price_per_hour * level * loads + WORTH * value * (1 - below)
        last = int(np.argmin(cost))
    return max(1.0, float(loads[min(last, len(loads) - 1)]), present / level)


def _relieved(loads: Floats, weights: Floats, price: float, relief: float) -> float:
    """The load where one more replica costs what it saves: others take what is above, at their price.

    Args:
        loads: sorted, in multiples of the level.
        weights: shares of the requests that met them.
        price: of capacity for the level, per hour.
        relief: of the level where the rest goes, per hour.
    """
    # What of the requests that met a load is above a limit, summed over all higher loads.
    share, scaled = np.cumsum(weights[::-1])[::-1], np.cumsum((weights / np.maximum(loads, 1e-9))[::-1])[::-1]
    cost = price * loads + relief * (share - loads * scaled)
    return max(1.0, float(loads[int(np.argmin(cost))])) / inflight.GUARDED


def _seen(used: list[Stream], now: float) -> tuple[Floats, Floats]:
    """Loads that requests met in the last hour, at the level `now` of all, and the requests' weights."""
    times = max((each.samples for each in used), key=len)
    count = len(times)
    stamps = np.array([sample.time.timestamp() for sample in times])
    means, extra, usual, busy, asked = (np.zeros(count) for _ in range(5))
    for each in used:
        each_load = each.share * each.load
        rate, peak, share, level = _aligned(each, stamps)
        means += rate * each_load
        usual += level * each_load
        extra = np.maximum(extra, (peak - rate) * each_load)
        busy += share * rate
        asked += rate
    later = np.minimum(np.searchsorted(stamps, stamps + _SETTLING_SECONDS), count - 1)
    scale = np.clip(now / np.maximum(np.maximum(usual, usual[later]), 1e-12), _LEAST_SCALE, _MOST_SCALE)
    peaks = (means + extra) * scale
    seconds = _spans([sample.time for sample in times])
    share = np.where(asked > 0, busy / np.maximum(asked, 1e-12), 0.0)
    return np.concatenate((peaks, means * scale)), np.concatenate((seconds * share, seconds * (1 - share)))


def _aligned(each: Stream, stamps: Floats) -> tuple[Floats, ...]:
    """Rates, peaks, shares and levels of the windows nearest to these moments; the present level where none is near."""
    rows = np.array([sample[1:] for sample in each.samples], dtype=np.float64)
    mine = np.array([sample.time.timestamp() for sample in each.samples])
    after = np.minimum(np.searchsorted(mine, stamps), mine.size - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(stamps - mine[before] < mine[after] - stamps, before, after)
    found = rows[nearest]
    found[np.abs(mine[nearest] - stamps) > _LONGEST.total_seconds()] = (each.level, each.level, 0.0, each.level)
    return found[:, 0], found[:, 1], found[:, 2], found[:, 3]


def _spans(times: list[datetime]) -> Floats:
    """Seconds that each sample stands for."""
    gaps = [min(after - before, _LONGEST).total_seconds() for before, after in itertools.pairwise(times)]
    return np.array([gaps[0] if gaps else 1.0, *gaps])


def _by_chance(used: list[Stream], level: float) -> tuple[Floats, Floats]:
    """Multiples of the level that chance alone gives, and their weights."""
    variance = 0.0
    for each in used:
        rate = each.level * each.share
        variance += DISPERSION * rate * each.load**2 / (BURST_SECONDS + each.seconds)
    spread = math.sqrt(variance) / level
    return np.array([1 + each * spread for each, _ in _CHANCE]), np.array([weight for _, weight in _CHANCE])
