"""Request traces: a seeded generator, and CSV files as others publish them.

The generator's shapes are published figures; how they are joined is our choice and stated:

- Over all requests the median prompt is 1020 and the median output 129 tokens, as in Azure's conversation service of
  November 2023 (Patel et al., Splitwise, ISCA 2024). `tests/sim` holds the generator to it.
- A quarter of the requests are `complex`: prompts of 1500 tokens, the same paper's median for coding, and more, with
  longer answers. The other three quarters are `routine`, with prompts below 1500: a prompt's size tells its class.
- Lengths are lognormal within those bounds; gaps are Gamma distributed with a coefficient of variation above one, since
  real arrivals are burstier than Poisson (Wang et al., BurstGPT, 2024; Xiang et al., ServeGen, 2025).
- The rate follows a curve: a low level, a rise, a peak, a fall, with short bursts on top.
"""

import csv
import gzip
import io
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from tierwise.errors import TierwiseError

ROUTINE = "routine"
COMPLEX = "complex"
COMPLEX_PROMPT_TOKENS = 1500
"""Prompts of at least so many tokens are complex, where a trace does not say it."""

COLUMNS = ("t_s", "prompt_tokens", "output_tokens")
MAX_REQUESTS = 5_000_000
MAX_TOKENS = 100_000_000


class TraceError(TierwiseError):
    """A trace that can not be read, with line and remedy; or a generator's setting that makes no sense."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        t_seconds: after the trace's start.
        prompt_tokens, output_tokens: at least 1.
        kind: `routine`, `complex`, or what the file says.
    """

    t_seconds: float
    prompt_tokens: int
    output_tokens: int
    kind: str = ROUTINE


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal number of tokens within bounds (drawn again when outside).

    Attributes:
        median: of the unbounded distribution, tokens.
        sigma: of the logarithm.
        least, most: bounds, tokens, both allowed.
    """

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, source: random.Random) -> int:
        """One number of tokens."""
        for _ in range(1000):
            value = round(self.median * math.exp(self.sigma * source.gauss(0.0, 1.0)))
            if self.least <= value <= self.most:
                return value
        raise TraceError(f"lengths with median {self.median:g} hardly ever fall within {self.least} to {self.most}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: its share of all requests (the generator normalises) and its lengths."""

    name: str
    share: float
    prompt: Lengths
    output: Lengths


@dataclass(frozen=True, slots=True)
class Burst:
    """For `seconds` from `start_fraction` of the duration, the rate is multiplied by `factor`."""

    start_fraction: float
    seconds: float
    factor: float


DEFAULT_KINDS = (
    Kind(ROUTINE, 0.75, Lengths(1150, 0.7, 16, COMPLEX_PROMPT_TOKENS - 1), Lengths(107, 0.8, 4, 800)),
    Kind(COMPLEX, 0.25, Lengths(2600, 0.4, COMPLEX_PROMPT_TOKENS, 8000), Lengths(220, 0.7, 16, 1200)),
)
DEFAULT_CURVE = ((0.0, 0.0), (0.2, 0.0), (0.45, 1.0), (0.6, 1.0), (0.8, 0.15), (1.0, 0.15))
DEFAULT_BURSTS = (Burst(0.1, 5.0, 2.0), Burst(0.5, 5.0, 1.5), Burst(0.9, 5.0, 2.0))


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to generate.

    Attributes:
        seed: same seed and spec, same trace.
        duration_seconds: length.
        base_rps, peak_rps: requests per second where the curve is 0 and where it is 1.
        curve: (fraction of the duration, level 0 to 1), linear in between, from 0 to 1, in order.
        variation: coefficient of variation of the gaps; 1 is Poisson.
        bursts: on top of the curve.
        kinds: of requests.
    """

    seed: int = 0
    duration_seconds: float = 300.0
    base_rps: float = 2.0
    peak_rps: float = 8.0
    curve: tuple[tuple[float, float], ...] = DEFAULT_CURVE
    variation: float = 1.3
    bursts: tuple[Burst, ...] = DEFAULT_BURSTS
    kinds: tuple[Kind, ...] = DEFAULT_KINDS

    def __post_init__(self) -> None:
        if not 0 < self.duration_seconds < math.inf or not 0 < self.base_rps <= self.peak_rps < math.inf:
            raise TraceError("a trace needs duration_seconds > 0 and 0 < base_rps <= peak_rps")
        if self.variation <= 0:
            raise TraceError("variation must be above 0; 1 is a Poisson process")
        points = [point for point, _ in self.curve]
        if len(points) < 2 or points[0] != 0.0 or points[-1] != 1.0 or any(b < a for a, b in pairwise(points)):
            raise TraceError("the curve must run from fraction 0 to 1 in order")
        if not self.kinds or any(kind.share < 0 for kind in self.kinds) or not sum(kind.share for kind in self.kinds):
            raise TraceError("kinds need shares that are not negative and not all zero")

    def rate(self, t_seconds: float) -> float:
        """Requests per second wanted at a time."""
        fraction = min(1.0, max(0.0, t_seconds / self.duration_seconds))
        level = self.curve[-1][1]
        for (left, low), (right, high) in pairwise(self.curve):
            if left <= fraction <= right:
                level = low if right == left else low + (high - low) * (fraction - left) / (right - left)
                break
        rate = self.base_rps + (self.peak_rps - self.base_rps) * level
        for burst in self.bursts:
            start = burst.start_fraction * self.duration_seconds
            if start <= t_seconds < start + burst.seconds:
                rate *= burst.factor
        return rate


STEP_SECONDS = 0.1
"""Resolution at which the rate curve is integrated."""


def generate(spec: TraceSpec) -> list[TraceRequest]:
    """A trace in order of time; equal specs give equal traces.

    Gaps are drawn with mean one and mapped through the integral of the rate, so that the curve holds whatever their
    variation.
    """
    source = random.Random(f"tierwise-trace:{spec.seed}")  # noqa: S311 - reproducible load, not a secret
    steps = math.ceil(spec.duration_seconds / STEP_SECONDS)
    step = spec.duration_seconds / steps
    cumulative = [0.0, *accumulate(spec.rate((index + 0.5) * step) * step for index in range(steps))]
    shape = 1.0 / spec.variation**2
    names = list(spec.kinds)
    shares = [kind.share for kind in spec.kinds]
    requests: list[TraceRequest] = []
    passed = source.gammavariate(shape, 1.0 / shape) * source.random()
    while passed < cumulative[-1]:
        index = max(1, bisect_left(cumulative, passed))
        within = (passed - cumulative[index - 1]) / (cumulative[index] - cumulative[index - 1])
        kind = source.choices(names, shares)[0]
        requests.append(
            TraceRequest(
                t_seconds=round((index - 1 + within) * step, 4),
                prompt_tokens=kind.prompt.draw(source),
                output_tokens=kind.output.draw(source),
                kind=kind.name,
            )
        )
        passed += source.gammavariate(shape, 1.0 / shape)
    return requests


def classify(requests: Iterable[TraceRequest], complex_prompt_tokens: int) -> list[TraceRequest]:
    """The same requests with their kind by prompt size: at least `complex_prompt_tokens` is complex."""
    return [
        replace(request, kind=COMPLEX if request.prompt_tokens >= complex_prompt_tokens else ROUTINE)
        for request in requests
    ]


def clip(requests: Iterable[TraceRequest], start_seconds: float, duration_seconds: float) -> list[TraceRequest]:
    """The requests of a window, with times from its start."""
    end = start_seconds + duration_seconds
    return [
        replace(request, t_seconds=round(request.t_seconds - start_seconds, 4))
        for request in requests
        if start_seconds <= request.t_seconds < end
    ]


def thin(requests: Iterable[TraceRequest], keep: float, seed: int = 0) -> list[TraceRequest]:
    """A random share of the requests, 0 to 1; keeps the curve and the mix."""
    source = random.Random(f"tierwise-thin:{seed}")  # noqa: S311 - reproducible load, not a secret
    return [request for request in requests if source.random() < keep]


def compress(requests: Iterable[TraceRequest], factor: float) -> list[TraceRequest]:
    """The same requests `factor` times faster."""
    return [replace(request, t_seconds=round(request.t_seconds / factor, 4)) for request in requests]


def read(path: Path, complex_prompt_tokens: int = COMPLEX_PROMPT_TOKENS) -> list[TraceRequest]:
    """Read `t_s,prompt_tokens,output_tokens[,class]` from a CSV file, compressed when its name ends in `.gz`.

    Other columns are ignored. Without `class`, the prompt's size decides (`classify`). An output of 0 tokens counts
    as 1: no request generates nothing.

    Raises:
        TraceError: with file, line and remedy.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(
            f"{path}: can not be read ({error}); give a CSV file in UTF-8, or one compressed by gzip"
        ) from error
    rows = csv.reader(io.StringIO(text))
    header = [name.strip() for name in next(rows, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise TraceError(
            f"{path}: line 1 names no column {', '.join(missing)}; it must be t_s,prompt_tokens,output_tokens[,class]"
        )
    places = [header.index(name) for name in COLUMNS]
    kind_place = header.index("class") if "class" in header else None
    requests: list[TraceRequest] = []
    before = 0.0
    for row in rows:
        if not row:
            continue
        where = f"{path}: line {rows.line_num}"
        if len(row) < len(header):
            raise TraceError(
                f"{where} has {len(row)} values but the header has {len(header)}; complete it or remove it"
            )
        t_seconds = _time(row[places[0]], before, where)
        before = t_seconds
        prompt = _tokens(row[places[1]], "prompt_tokens", 1, where)
        output = _tokens(row[places[2]], "output_tokens", 0, where)
        kind = row[kind_place].strip() if kind_place is not None else ""
        kind = kind or (COMPLEX if prompt >= complex_prompt_tokens else ROUTINE)
        requests.append(TraceRequest(t_seconds, prompt, max(1, output), kind))
        if len(requests) > MAX_REQUESTS:
            raise TraceError(f"{where}: more than {MAX_REQUESTS} requests; split the trace")
    if not requests:
        raise TraceError(f"{path}: there is no request after the header; give at least one line")
    return requests


def _time(text: str, before: float, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise TraceError(f"{where}: t_s is {text!r}; write seconds since the trace's start, such as 12.5") from error
    if not 0 <= value < math.inf:
        raise TraceError(f"{where}: t_s is {text}; seconds since the trace's start are not negative")
    if value < before:
        raise TraceError(f"{where}: t_s is {text}, before the line above ({before:g}); sort the file by t_s")
    return value


def _tokens(text: str, name: str, least: int, where: str) -> int:
    try:
        value = float(text)
    except ValueError as error:
        raise TraceError(f"{where}: {name} is {text!r}; write a whole number of tokens") from error
    if not least <= value <= MAX_TOKENS or not value.is_integer():
        raise TraceError(f"{where}: {name} is {text}; write a whole number of tokens, at least {least}")
    return int(value)


def write(path: Path, requests: Sequence[TraceRequest]) -> None:
    """Write a trace with its classes; compressed when the name ends in `.gz`, the same bytes for the same trace."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "class"])
    writer.writerows(
        (
            f"{r.t_seconds:g}" if r.t_seconds < 100 else f"{r.t_seconds:.4f}".rstrip("0").rstrip("."),
            r.prompt_tokens,
            r.output_tokens,
            r.kind,
        )
        for r in requests
    )
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
