"""How a class's demand changes with the time of day, as far as that has shown to hold.

Means of ten minutes, averaged over the days. Whether they foretell anything is measured: for each ten minutes, how far
off the ten minutes before were, and how far off they are where they grow as they did on other days (squares, as large
misses are what replicas are missing for). Only where the latter were clearly closer for a day does the plan go by it:
traffic that has no season would only gain noise.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime

BIN_SECONDS = 600.0
"""What a mean is of: start-ups take minutes, and chance is evened out."""

BINS = round(86400 / BIN_SECONDS)

DAYS = 5
"""Means are of so many days, older ones fading: weekends differ, and a habit changes."""

BETTER = 0.7
"""Squared errors have to be this much smaller, as a factor."""

TRIED = 0.75
"""So much of a day has to be compared first."""

_SCALE = (0.5, 2.0)
"""A day is busier or calmer than usual within these multiples."""

_MOST_ERROR = 1.5
"""Of one mean, as a logarithm: from nothing to something is not infinitely wrong."""

_LEAST_RATE = 1e-3
"""Requests/s below which nothing is compared."""


@dataclass(frozen=True, slots=True)
class Season:
    """What the days were like.

    Attributes:
        means: requests/s by time of day (UTC), from midnight; None: not seen yet.
        days: how often each was seen, at most `DAYS`.
        at: number of the present ten minutes, since the epoch. requests, seconds: in it so far.
        last: requests/s of those before; None after a gap.
        plain, seasonal: mean squared errors of the two forecasts, of logarithms. compared: how many, at most a day's.
    """

    means: tuple[float | None, ...] = (None,) * BINS
    days: tuple[int, ...] = (0,) * BINS
    at: int | None = None
    requests: float = 0.0
    seconds: float = 0.0
    last: float | None = None
    plain: float = 0.0
    seasonal: float = 0.0
    compared: int = 0

    @property
    def holds(self) -> bool:
        """Whether the time of day foretells demand."""
        return self.compared >= TRIED * BINS and self.seasonal < BETTER * self.plain


def seen(season: Season, now: datetime, rate: float, elapsed: float) -> Season:
    """The season with one more window.

    Args:
        season: so far.
        now: end of the window, aware.
        rate: requests/s in it.
        elapsed: seconds that it stands for.
    """
    at = int(now.timestamp() // BIN_SECONDS)
    if season.at is None or at < season.at:
        return _begun(season, at, None, rate, elapsed)
    if at == season.at:
        return replace(season, requests=season.requests + rate * elapsed, seconds=season.seconds + elapsed)
    if at > season.at + 1 or season.seconds < BIN_SECONDS / 2:
        return _begun(season, at, None, rate, elapsed)
    mean = season.requests / season.seconds
    place = season.at % BINS
    compared = _compared(season, place, mean)
    known, count = season.means[place], min(season.days[place] + 1, DAYS)
    found = mean if known is None else known + (mean - known) / count
    kept = replace(
        compared,
        means=(*season.means[:place], found, *season.means[place + 1 :]),
        days=(*season.days[:place], count, *season.days[place + 1 :]),
    )
    return _begun(kept, at, mean, rate, elapsed)


def ahead(season: Season, now: datetime, level: float, lead_seconds: float) -> float:
    """The most that is usual from now until a replica that is asked for now would be ready, requests/s; at least 0.

    Args:
        season: of the class.
        now: aware.
        level: requests/s that are usual at present: the day may be busier than others, or calmer.
        lead_seconds: of a start-up.
    """
    if not season.holds:
        return 0.0
    start = now.timestamp()
    present = _at(season, start)
    # Half of ten minutes more: a mean stands for its middle.
    steps = max(1, math.ceil((lead_seconds + BIN_SECONDS / 2) / (BIN_SECONDS / 2)))
    times = [start + (lead_seconds + BIN_SECONDS / 2) * step / steps for step in range(1, steps + 1)]
    coming = [found for time in times if (found := _at(season, time)) is not None]
    mean = season.means[int(start // BIN_SECONDS) % BINS]
    if present is None or mean is None or not coming:
        return 0.0
    # Before a step what lies between the means is no more than the first of them.
    present = min(present, mean)
    scale = min(max(level / present, _SCALE[0]), _SCALE[1]) if present > _LEAST_RATE else 1.0
    return scale * max(coming)


def _begun(season: Season, at: int, last: float | None, rate: float, elapsed: float) -> Season:
    return replace(season, at=at, last=last, requests=rate * elapsed, seconds=elapsed)


def _at(season: Season, stamp: float) -> float | None:
    """What is usual at a moment: between the middles of ten minutes, in proportion."""
    place = stamp / BIN_SECONDS - 0.5
    first, part = math.floor(place), place - math.floor(place)
    low, high = season.means[first % BINS], season.means[(first + 1) % BINS]
    return None if low is None or high is None else low + part * (high - low)


def _compared(season: Season, place: int, mean: float) -> Season:
    """How far off both forecasts of these ten minutes were."""
    before, usual, usual_before = season.last, season.means[place], season.means[place - 1]
    if before is None or usual is None or usual_before is None:
        return season
    count = min(season.compared + 1, BINS)
    plain = _error(mean, before)
    seasonal = _error(mean, before * usual / usual_before if usual_before > _LEAST_RATE else usual)
    return replace(
        season,
        plain=season.plain + (plain - season.plain) / count,
        seasonal=season.seasonal + (seasonal - season.seasonal) / count,
        compared=count,
    )


def _error(real: float, said: float) -> float:
    """Squared, of the logarithms."""
    if max(real, said) < _LEAST_RATE:
        return 0.0
    return min(_MOST_ERROR, abs(math.log(max(real, _LEAST_RATE) / max(said, _LEAST_RATE)))) ** 2
