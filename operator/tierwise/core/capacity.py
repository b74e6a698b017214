"""How much work one replica of a tier does while its latency objectives still hold: learnt online, never assumed.

**Work.** Requests of different classes cost a replica differently, so load is counted in *work units*: one unit is one
generated token; a prompt token counts `PROMPT_WEIGHT` units. Load on a shared tier is then the sum of its classes'.

**Model.** A replica that batches continuously slows down as `ITL = a / (1 - rho)`, with `a` the inter-token time of an
idle replica and `rho = load / saturation`. Hence `1 / ITL = 1/a - load / (a * saturation)`: linear in the load. Both
constants are fitted by weighted least squares with forgetting, anchored to the estimate so far (and first to the
declared prior), and move a bounded amount per observation. Time to first token and the whole request's latency grow
with the same factor `1 / (1 - rho)`.

**Feedback.** The model need not be true. A queue that stands bounds the capacity by the throughput seen then, and an
objective
that is breached at a load which the model calls safe lowers the margin; both recover slowly.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tierwise.core.signals import TierSignals, value_of

PROMPT_WEIGHT = 0.3
"""Work units per prompt token. Median over the dense and mixture models on H100-class devices of (prefill time per
prompt
token) / (batched decode time per generated token at 1,000 tokens of context) lies between 0.2 and 0.8; the optimum is
flat because saturation is fitted on the observed mix."""

DEFAULT_UTILISATION = 0.8
"""Utilisation to plan for where no objective says otherwise."""

MAX_UTILISATION = 0.9
"""Above this, `1 / (1 - rho)` makes every forecast worthless."""

MIN_UTILISATION = 0.05
"""A tier that meets an objective only below this utilisation is one that can not meet it."""

TAIL_FACTOR = 1.03
"""95th percentile over requests of their mean inter-token time, over the mean of all (batches are homogeneous)."""

_FORGET = 0.93
_ANCHOR_WEIGHT = 1.0
_MAX_MOVE = 0.15
_MIN_MARGIN = 0.5
_TRUST = 2.0
"""A line that was seen up to some load is believed up to this multiple of it: small loads say little of large ones."""

_MOST_RHO, _MOST_UNEVEN = 0.95, 2.0
"""Utilisation in a burst, and even load over mean load, that are believed at most."""

_CARRIED_FADE = 0.98

_ROOM_GROWS = 1.005
"""A replica that queued with so many requests is given a few more again, a window after the other."""

_LEAST_ODDS, _RUNNING_GAIN = 0.05, 0.1

_FADE = 0.95
"""What is left, after a window without a request, of an estimate that rules a tier out."""

_SLOW, _BELIEVE = 0.7, 3
"""An idle inter-token time above this share of the objective is believed only from so many observations on."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a tier's engines.

    Attributes:
        work_rate: work units/s per ready replica.
        inter_token_seconds: mean inter-token time; None when nothing was generated.
        inter_token_p95_seconds: 95th percentile over requests of a request's mean inter-token time, None when unknown.
        ttft_p95_seconds: 95th percentile, None when unknown.
        waiting: requests queued per ready replica. running: requests decoded per ready replica.
        parts: (multiple of `work_rate`, share of the tokens): how uneven the window was; empty: not known.
        derived: the inter-token time is not measured, but derived from running requests and the window's tokens.
    """

    work_rate: float
    inter_token_seconds: float | None
    inter_token_p95_seconds: float | None
    ttft_p95_seconds: float | None
    waiting: float
    running: float
    parts: tuple[tuple[float, float], ...] = ()
    derived: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """What is known of one replica of a tier.

    Attributes:
        saturation: work units/s at which the replica is saturated (rho = 1).
        idle_inter_token_seconds: `a`; None before the first observation.
        idle_ttft_seconds: time to first token (95th percentile) of an idle replica; None when unknown.
        queue_limit: work units/s that a standing queue showed to be the most; None when none was seen.
        margin: factor on the utilisation that feedback took away, in [0.5, 1].
        carried: work units/s that were carried without a queue lately.
        running_scale: requests that a replica runs at half of its saturation; None when unknown.
        queued: observations in a row that showed a queue.
        most_running: requests that a replica ran while others queued; None when none did.
        observations: how many went in, of replicas at work; 0 means that all is declared or assumed.
        covered: share of a first window of work that they covered, up to 1.
        normal: sufficient statistics of the fit (s11, s12, s22, t1, t2).
    """

    saturation: float
    idle_inter_token_seconds: float | None = None
    idle_ttft_seconds: float | None = None
    queue_limit: float | None = None
    margin: float = 1.0
    queued: int = 0
    carried: float = 0.0
    running_scale: float | None = None
    most_running: float | None = None
    observations: int = 0
    covered: float = 0.0
    normal: tuple[float, float, float, float, float] | None = None

    @property
    def provenance(self) -> str:
        """`measured` once ten observations went in, `estimated` from the first, else `declared`."""
        if self.observations >= 10:
            return "measured"
        return "estimated" if self.observations else "declared"


@dataclass(frozen=True, slots=True)
class Objective:
    """95th percentiles in seconds; None: no objective."""

    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    latency_seconds: float | None = None


def work_units(prompt_tokens: float, completion_tokens: float) -> float:
    """Work units of one request with these tokens; at least one."""
    return max(1.0, completion_tokens + PROMPT_WEIGHT * prompt_tokens)


def declared(requests_per_second: float, units_per_request: float) -> Capacity:
    """The prior: `requests_per_second` of the mean request, taken to hold at the default utilisation."""
    return Capacity(saturation=requests_per_second * units_per_request / DEFAULT_UTILISATION)


def observe(
    signals: TierSignals, ready: int, *, max_age_seconds: float, parts: tuple[tuple[float, float], ...] = ()
) -> Observation | None:
    """An observation from a tier's signals; None where the load is not known or nobody carries it."""

    def get(name: str) -> float | None:
        return value_of(getattr(signals, name), max_age_seconds=max_age_seconds)

    generated, prompts, running = get("generation_token_rate"), get("prompt_token_rate"), get("running")
    replicas = get("ready_replicas")
    count = replicas if replicas is not None and replicas > 0 else float(ready)
    if count < 1 or generated is None or prompts is None or running is None:
        return None
    mean = get("inter_token_mean_seconds")
    derived = mean is None
    if mean is None and generated > 0 and running > 0:
        # Little's law: `running` sequences, each a token per inter-token time.
        mean = running / generated
    if generated <= 0:
        mean = None
    return Observation(
        work_rate=(generated + PROMPT_WEIGHT * prompts) / count,
        inter_token_seconds=mean,
        inter_token_p95_seconds=inter_token_of_requests(signals, max_age_seconds=max_age_seconds),
        ttft_p95_seconds=get("ttft_p95_seconds"),
        waiting=(get("waiting") or 0.0) / count,
        running=running / count,
        parts=parts,
        derived=derived,
    )


def inter_token_of_requests(signals: TierSignals, *, max_age_seconds: float) -> float | None:
    """95th percentile over requests of a request's mean inter-token time, seconds; None when unknown.

    Engines have a histogram of single gaps. Each prefill of another request delays one gap of every running one, so
    that 5% of gaps are long at a load at which no request is slow: their percentile says nothing of requests.
    """
    mean = value_of(signals.inter_token_mean_seconds, max_age_seconds=max_age_seconds)
    if mean is not None:
        return TAIL_FACTOR * mean
    return value_of(signals.inter_token_p95_seconds, max_age_seconds=max_age_seconds)


def utilisation_limit(capacity: Capacity, objective: Objective, *, idle_latency_seconds: float | None = None) -> float:
    """The largest utilisation at which `objective` still holds, in [0, 0.9]; 0 when it holds at none.

    Args:
        capacity: what is known of the tier.
        objective: of the class.
        idle_latency_seconds: whole-request latency (95th percentile) of this class on an idle replica, when known.
    """
    bounds = [MAX_UTILISATION]
    idle = capacity.idle_inter_token_seconds
    if objective.inter_token_seconds is not None and idle is not None:
        bounds.append(1 - TAIL_FACTOR * idle / objective.inter_token_seconds)
    if objective.ttft_seconds is not None and capacity.idle_ttft_seconds is not None:
        bounds.append(1 - capacity.idle_ttft_seconds / objective.ttft_seconds)
    if objective.latency_seconds is not None and idle_latency_seconds is not None:
        bounds.append(1 - idle_latency_seconds / objective.latency_seconds)
    if len(bounds) == 1:
        bounds.append(DEFAULT_UTILISATION)
    limit = min(bounds)
    if limit < MIN_UTILISATION:
        return 0.0
    limit *= capacity.margin
    if capacity.queue_limit is not None:
        limit = min(limit, capacity.queue_limit / capacity.saturation)
    return max(limit, MIN_UTILISATION)


def learn(capacity: Capacity, seen: Observation, objectives: Iterable[Objective], *, news: float = 1.0) -> Capacity:
    """The estimate after one more observation. An idle replica teaches nothing: what was declared is not measured yet.

    Args:
        capacity: the estimate so far.
        seen: one observation of a new window (feeding one window twice would count its noise twice).
        objectives: of the classes that the tier serves now, for the feedback.
        news: share of the observation's window that no earlier one has covered, 0 to 1.
    """
    objectives = tuple(objectives)
    if seen.work_rate <= 0:
        return replace(_learn_queue(_tried_again(capacity, objectives, news), seen), queued=0)
    covered = min(1.0, capacity.covered + news)
    capacity = replace(capacity, covered=covered)
    if seen.derived and covered < 1 and capacity.idle_inter_token_seconds is None:
        # What runs now over the tokens of a window that was empty: a load that begins would look as slow as can be.
        return capacity
    updated = _fit(capacity, seen, objectives)
    rho = min(seen.work_rate / updated.saturation, 0.95)
    updated = _learn_ttft(updated, seen, rho)
    updated = _learn_running(updated, seen, rho)
    updated = _learn_queue(updated, seen)
    updated = _learn_margin(updated, seen, rho, objectives, news)
    return replace(updated, observations=min(capacity.observations + 1, 1_000_000))


def _tried_again(capacity: Capacity, objectives: tuple[Objective, ...], news: float) -> Capacity:
    """A tier that its estimate rules out gets no requests that could tell otherwise: the estimate fades."""
    idle = capacity.idle_inter_token_seconds
    if idle is None or all(utilisation_limit(capacity, objective) > 0 for objective in objectives):
        return capacity
    ttft = capacity.idle_ttft_seconds
    fade = _FADE**news
    return replace(
        capacity,
        idle_inter_token_seconds=idle * fade,
        idle_ttft_seconds=ttft * fade if ttft is not None else None,
        normal=None,
    )


def _fit(capacity: Capacity, seen: Observation, objectives: tuple[Objective, ...]) -> Capacity:
    itl = seen.inter_token_seconds
    if itl is None or not math.isfinite(itl) or itl <= 0 or seen.work_rate <= 0:
        return capacity
    idle = capacity.idle_inter_token_seconds
    if idle is None:
        idle = itl * (1 - min(seen.work_rate / capacity.saturation, 0.9))
        strictest = min((o.inter_token_seconds for o in objectives if o.inter_token_seconds is not None), default=None)
        if strictest is not None and idle > _SLOW * strictest and capacity.observations < _BELIEVE:
            # Slow at first sight: rather overloaded than unable, until it is seen with less load.
            return replace(capacity, saturation=min(capacity.saturation, seen.work_rate))
    if itl < idle:
        # A loaded replica is never faster than an idle one: the estimate was too high. Without this, one window of long
        # prefills and few tokens could rule a tier out, and nothing would be measured any more that tells otherwise.
        idle = itl
        capacity = replace(capacity, idle_inter_token_seconds=idle, normal=None)
    anchor = _pseudo(0.0, idle, _ANCHOR_WEIGHT)
    # Near the present load: an anchor far out on the line would outweigh what is seen.
    rho = min(max(seen.work_rate / capacity.saturation, 0.1), 0.5)
    anchor = _add(anchor, _pseudo(rho * capacity.saturation, idle / (1 - rho), _ANCHOR_WEIGHT))
    # A batch of many sequences says more than one of few.
    weight = min(1.0, seen.running / 4)
    load = _even_load(capacity, seen)
    sums = anchor if capacity.normal is None else _mix(capacity.normal, anchor)
    sums = _add(sums, _pseudo(load, itl, weight))
    solved = _solve(sums)
    if solved is None:
        return replace(capacity, idle_inter_token_seconds=idle, normal=sums)
    new_idle, new_saturation = solved
    return replace(
        capacity,
        idle_inter_token_seconds=_bounded(idle, new_idle),
        saturation=min(
            _bounded(capacity.saturation, new_saturation), max(capacity.saturation, _TRUST * seen.work_rate)
        ),
        normal=sums,
    )


def _even_load(capacity: Capacity, seen: Observation) -> float:
    """The even load at which tokens would have taken as long as they did in a window of bursts and calm."""
    mean = seen.work_rate / capacity.saturation
    total = sum(share for _, share in seen.parts)
    if total <= 0 or mean <= 0:
        return seen.work_rate
    slow = sum(share / (1 - min(mean * multiple, _MOST_RHO)) for multiple, share in seen.parts) / total
    return seen.work_rate * min(max((1 - 1 / slow) / mean, 1.0), _MOST_UNEVEN)


def _pseudo(load: float, itl: float, weight: float) -> tuple[float, float, float, float, float]:
    """Statistics of one point of `1 = itl * (A - B * load)`: the error is relative to the inter-token time."""
    x1, x2 = itl, -itl * load
    return weight * x1 * x1, weight * x1 * x2, weight * x2 * x2, weight * x1, weight * x2


def _add(
    left: tuple[float, float, float, float, float], right: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    a, b = left, right
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]


def _mix(
    sums: tuple[float, float, float, float, float], anchor: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    """Forget a little and pull as much towards the estimate so far: a steady load must not make the fit degenerate."""
    kept = _FORGET
    s, a = sums, anchor
    return (
        kept * s[0] + (1 - kept) * a[0],
        kept * s[1] + (1 - kept) * a[1],
        kept * s[2] + (1 - kept) * a[2],
        kept * s[3] + (1 - kept) * a[3],
        kept * s[4] + (1 - kept) * a[4],
    )


def _solve(sums: tuple[float, float, float, float, float]) -> tuple[float, float] | None:
    s11, s12, s22, t1, t2 = sums
    determinant = s11 * s22 - s12 * s12
    if determinant <= 1e-12 * s11 * s22:
        return None
    inverse_idle = (t1 * s22 - t2 * s12) / determinant
    slope = (s11 * t2 - s12 * t1) / determinant
    if inverse_idle <= 0 or slope <= 0:
        return None
    return 1 / inverse_idle, inverse_idle / slope


def _bounded(old: float, new: float, most: float = _MAX_MOVE) -> float:
    return min(max(new, old / (1 + most)), old * (1 + most))


def _learn_ttft(capacity: Capacity, seen: Observation, rho: float) -> Capacity:
    ttft = seen.ttft_p95_seconds
    if ttft is None or ttft <= 0 or seen.waiting > 0.5:
        return capacity  # with a queue it measures the queue
    idle = ttft * (1 - rho)
    before = capacity.idle_ttft_seconds
    if before is None:
        return replace(capacity, idle_ttft_seconds=idle)
    gain = 0.2 if idle < before else 0.1
    return replace(capacity, idle_ttft_seconds=_bounded(before, before + gain * (idle - before)))


def _learn_running(capacity: Capacity, seen: Observation, rho: float) -> Capacity:
    """Running requests grow as `rho / (1 - rho)`: by Little's law, arrivals times tokens times inter-token time.

    In a window of bursts and calm their mean is that of its parts, more than at the mean load.
    """
    parts = seen.parts or ((1.0, 1.0),)
    total = sum(share for _, share in parts)
    odds = sum(share * _odds(rho * multiple) for multiple, share in parts) / total if total > 0 else _odds(rho)
    if odds < _LEAST_ODDS:
        return capacity
    scale, before = seen.running / odds, capacity.running_scale
    return replace(capacity, running_scale=scale if before is None else before + _RUNNING_GAIN * (scale - before))


def _odds(rho: float) -> float:
    busy = min(rho, _MOST_RHO)
    return busy / (1 - busy)


def running_at(capacity: Capacity, utilisation: float) -> int | None:
    """Running requests of one replica at a utilisation below 1, at least 1; None when none were measured."""
    if capacity.running_scale is None or utilisation <= 0:
        return None
    return max(1, round(capacity.running_scale * utilisation / (1 - utilisation)))


def _learn_queue(capacity: Capacity, seen: Observation) -> Capacity:
    limit = capacity.queue_limit
    if seen.waiting > max(1.0, 0.1 * seen.running):
        queued = capacity.queued + 1
        # One window may mix a burst with the calm before it: believe the second.
        if queued >= 2:
            # Never less than what was carried without a queue a moment ago: the window may still hold calm.
            most = max(0.95 * seen.work_rate, capacity.carried)
            limit = most if limit is None else limit + 0.5 * (most - limit)
            return replace(capacity, queued=queued, queue_limit=limit, most_running=seen.running)
        return replace(capacity, queued=queued, queue_limit=limit)
    if limit is not None:
        limit = max(limit * 1.02, seen.work_rate)
        if limit >= capacity.saturation:
            limit = None
    carried = max(seen.work_rate, _CARRIED_FADE * capacity.carried)
    room = capacity.most_running
    if room is not None:
        room = max(room * _ROOM_GROWS, seen.running)
    return replace(capacity, queued=0, queue_limit=limit, carried=carried, most_running=room)


def _learn_margin(
    capacity: Capacity, seen: Observation, rho: float, objectives: tuple[Objective, ...], news: float
) -> Capacity:
    breached = False
    safe = False
    for objective in objectives:
        limit = utilisation_limit(capacity, objective)
        itl = (seen.inter_token_p95_seconds, objective.inter_token_seconds)
        ttft = (seen.ttft_p95_seconds, objective.ttft_seconds)
        for value, bound in (itl, ttft):
            if value is None or bound is None:
                continue
            if value > bound:
                breached = breached or 0.3 * limit < rho <= limit
            else:
                safe = True
    if breached:
        return replace(capacity, margin=max(_MIN_MARGIN, capacity.margin * 0.95**news))
    if safe and capacity.margin < 1:
        return replace(capacity, margin=min(1.0, capacity.margin * 1.01**news))
    return capacity
