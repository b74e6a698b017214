"""Requests of one class as arrays: read from a file per request, or drawn from a file per minute."""

import csv
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tierwise.errors import TierwiseError
from tierwise.simulate.fluid import Demand
from tierwise.simulate.traces import BURST_SECONDS, SlotTrace

Floats = NDArray[np.float64]

MAX_REQUESTS = 20_000_000
"""More at once would not fit into memory beside all else."""
COLUMNS = ("t_s", "prompt_tokens", "output_tokens")


class RequestTraceError(TierwiseError):
    """A trace that can not be read or is too long, with the remedy."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of time.

    Attributes:
        t: seconds since the start. prompt, output: tokens, at least 1.
    """

    t: Floats
    prompt: Floats
    output: Floats

    @property
    def count(self) -> int:
        """How many."""
        return int(self.t.size)

    def part(self, first: int, last: int) -> "Requests":
        """From `first` to before `last`."""
        return Requests(self.t[first:last], self.prompt[first:last], self.output[first:last])

    def where(self, mask: NDArray[np.bool_]) -> "Requests":
        """Some of them."""
        return Requests(self.t[mask], self.prompt[mask], self.output[mask])

    def later(self, seconds: float) -> "Requests":
        """The same, so many seconds later."""
        return Requests(self.t + seconds, self.prompt, self.output)

    def slotted(self, seconds: float, slots: int) -> SlotTrace:
        """Sums by slots of whole tens of seconds."""
        place = (self.t // seconds).astype(np.int64)
        inside = place < slots
        tens = max(1, round(seconds / BURST_SECONDS))
        ten = (self.t[inside] // (seconds / tens)).astype(np.int64)
        peaks = np.bincount(ten, minlength=slots * tens)[: slots * tens].reshape(slots, tens).max(axis=1)
        counts, prompts, outputs = (
            np.bincount(place[inside], weights, minlength=slots).astype(np.float64)
            for weights in (None, self.prompt[inside], self.output[inside])
        )
        return SlotTrace(seconds, counts, prompts, outputs, peaks.astype(np.float64))


def repeated(requests: Requests, factor: float, seed: int) -> Requests:
    """So many times the requests, each as long as before; copies lie within the ten seconds of their original."""
    if factor == 1.0:
        return requests
    source = np.random.default_rng([seed, 0x5CA])
    times = np.floor(factor + source.random(requests.count)).astype(np.int64)
    if int(times.sum()) > MAX_REQUESTS:
        raise RequestTraceError(
            f"{times.sum()} requests are more than the {MAX_REQUESTS} that fit; use a smaller --scale"
        )
    which = np.repeat(np.arange(requests.count), times)
    first = np.concatenate(([True], np.diff(which) > 0)) if which.size else np.zeros(0, dtype=np.bool_)
    ten = np.floor(requests.t[which] / BURST_SECONDS) * BURST_SECONDS
    t = np.where(first, requests.t[which], ten + BURST_SECONDS * source.random(which.size))
    order = np.argsort(t, kind="stable")
    return Requests(t[order], requests.prompt[which][order], requests.output[which][order])


def read(path: Path, *, classes: bool = False) -> dict[str, Requests]:
    """Read a file per request: `t_s,prompt_tokens,output_tokens[,class]`, plain or `.gz`, sorted by time.

    Args:
        path: of the file.
        classes: take the requests apart by the file's column `class`.

    Returns:
        Class -> its requests; without `classes` all of them under "".

    Raises:
        RequestTraceError: with file, line and remedy.
    """
    text = _text(path)
    header = [name.strip() for name in text.partition("\n")[0].split(",")]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise RequestTraceError(
            f"{path}: line 1 names no column {', '.join(missing)}; a trace has {','.join(COLUMNS)}, or per minute "
            "minute,requests,prompt_tokens,output_tokens,max_requests_in_10s"
        )
    if classes and "class" not in header:
        raise RequestTraceError(
            f"{path}: line 1 names no column class; name the class on the command line: --trace CLASS={path}"
        )
    places = [header.index(name) for name in COLUMNS]
    if not text.partition("\n")[2].strip():
        raise RequestTraceError(f"{path}: there is no request after the header; give at least one line")
    try:
        values = np.loadtxt(text.splitlines()[1:], delimiter=",", usecols=places, ndmin=2, comments=None)
    except ValueError:
        values = _slowly(path, text, header)
    _check(path, values)
    order = Requests(values[:, 0], np.maximum(values[:, 1], 1.0), np.maximum(values[:, 2], 1.0))
    if not classes:
        return {"": order}
    place = header.index("class")
    names = np.array([line.split(",")[place].strip() for line in text.splitlines()[1:] if line.strip()])
    return {str(name): order.where(names == name) for name in np.unique(names)}


def per_minute(path: Path) -> bool:
    """Whether a file has a line per minute rather than one per request."""
    return _text(path, limit=4096).partition("\n")[0].split(",")[0].strip() == "minute"


def has_column(path: Path, name: str) -> bool:
    """Whether a file's first line names a column."""
    return name in [each.strip() for each in _text(path, limit=4096).partition("\n")[0].split(",")]


def _text(path: Path, limit: int = -1) -> str:
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            return stream.read(limit).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RequestTraceError(
            f"{path}: can not be read ({error}); give a CSV file in UTF-8, or one in gzip"
        ) from error


def _slowly(path: Path, text: str, header: list[str]) -> Floats:
    """The same line by line, to say which line is wrong."""
    rows: list[list[float]] = []
    reader = csv.reader(text.splitlines())
    next(reader, None)
    for row in reader:
        if not row:
            continue
        try:
            rows.append([float(row[header.index(name)]) for name in COLUMNS])
        except (ValueError, IndexError) as error:
            raise RequestTraceError(
                f"{path}: line {reader.line_num}: {','.join(row)[:60]!r} has no number in each of {','.join(COLUMNS)}; "
                "complete it or remove it"
            ) from error
    return np.array(rows).reshape(-1, len(COLUMNS))


def _check(path: Path, values: Floats) -> None:
    bad = np.flatnonzero(~(np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)))
    if bad.size:
        raise RequestTraceError(f"{path}: line {bad[0] + 2}: a value is negative or no number; correct or remove it")
    back = np.flatnonzero(np.diff(values[:, 0]) < 0)
    if back.size:
        raise RequestTraceError(f"{path}: line {back[0] + 3}: t_s is before the line above; sort the file by t_s")


def drawn(trace: SlotTrace, seed: int, spread: float = 0.0) -> Requests:
    """Single requests whose sums are those of a file per minute.

    Each slot's busiest ten seconds have exactly their number; the others share the rest evenly at random, none with
    more. Within ten seconds moments are uniform. Fractions (of a scaled trace) become whole requests at random.

    Args:
        trace: by slots of whole tens of seconds.
        seed: of all draws.
        spread: coefficient of variation of the lengths within a slot (lognormal); 0: each has the slot's mean, since
            the file says nothing of their spread.

    Raises:
        RequestTraceError: more than `MAX_REQUESTS`.
    """
    source = np.random.default_rng([seed, 0x7E5])
    if trace.requests.sum() > MAX_REQUESTS:
        raise RequestTraceError(
            f"{trace.requests.sum():.0f} requests are more than the {MAX_REQUESTS} that fit; use --speed fluid, or "
            "fewer --hours"
        )
    counts = np.floor(trace.requests + source.random(trace.slots)).astype(np.int64)
    tens = round(trace.slot_seconds / BURST_SECONDS)
    least = -(-counts // tens)
    peaks = np.minimum(counts, np.maximum(least, np.rint(trace.peak_requests).astype(np.int64)))
    times: list[Floats] = []
    for slot, (count, peak) in enumerate(zip(counts.tolist(), peaks.tolist(), strict=True)):
        if count:
            start = slot * trace.slot_seconds
            times.append(start + np.sort(_moments(source, count, peak, tens)))
    t = np.concatenate(times) if times else np.zeros(0)
    means = [np.divide(sums, np.maximum(trace.requests, 1e-9)) for sums in (trace.prompt_tokens, trace.output_tokens)]
    prompt, output = (np.maximum(1.0, _lengths(source, np.repeat(mean, counts), spread)) for mean in means)
    return Requests(t, prompt, output)


def _moments(source: np.random.Generator, count: int, peak: int, tens: int) -> Floats:
    if tens == 1:
        return np.asarray(source.random(count) * BURST_SECONDS)
    busiest = int(source.integers(tens))
    parts = np.zeros(tens, dtype=np.int64)
    others = [ten for ten in range(tens) if ten != busiest]
    parts[others] = source.multinomial(count - peak, [1 / len(others)] * len(others))
    over = int(np.maximum(parts - peak, 0).sum())
    parts = np.minimum(parts, peak)
    parts[busiest] = peak
    for ten in others:  # what a ten had too much goes where there is room; there is, since peak >= count / tens
        more = min(over, peak - int(parts[ten]))
        parts[ten] += more
        over -= more
    return np.asarray(BURST_SECONDS * (np.repeat(np.arange(tens), parts) + source.random(count)))


def _lengths(source: np.random.Generator, mean: Floats, spread: float) -> Floats:
    if spread <= 0:
        return np.floor(mean + source.random(mean.size))
    sigma = math.sqrt(math.log(1 + spread * spread))
    return np.rint(mean * np.exp(sigma * source.standard_normal(mean.size) - sigma * sigma / 2))


@dataclass(frozen=True, slots=True)
class RequestFeed:
    """Requests as a `run.Feed`: what gateways would count of each round.

    Attributes:
        requests: class -> requests. seconds: length of a round. start: moment of the first round.
    """

    requests: Mapping[str, Requests]
    seconds: float
    start: float = 0.0

    @property
    def slots(self) -> int:
        """Rounds until the last request."""
        last = max((float(mine.t[-1]) for mine in self.requests.values() if mine.count), default=0.0)
        return max(1, math.ceil((last + 1e-6 - self.start) / self.seconds))

    def demand(self, slot: int) -> dict[str, Demand]:
        """Every class's demand in a round."""
        return {name: self._of(mine, self.start + slot * self.seconds) for name, mine in self.requests.items()}

    def _of(self, mine: Requests, start: float) -> Demand:
        first, last = np.searchsorted(mine.t, (start, start + self.seconds)).tolist()
        count = last - first
        if not count:
            return Demand(0.0, 0.0, 0.0, 0.0)
        tens = np.bincount(((mine.t[first:last] - start) / BURST_SECONDS).astype(np.int64))
        return Demand(
            float(count),
            float(mine.prompt[first:last].mean()),
            float(mine.output[first:last].mean()),
            float(tens.max()),
        )
