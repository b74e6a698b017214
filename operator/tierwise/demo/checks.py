"""What a run promised, checked against what was counted. Pure; each check can fail, and says so in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tierwise.demo.records import Served

STANDARD_ERRORS = 2.0
"""Weights are probabilities, so a realised mean score scatters around the intended one: by the standard deviation of
the tiers' scores over the requests, divided by the root of their number."""

BINDING_MARGIN = 0.02
"""A floor binds when the mix lies within this above it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise.

    Attributes:
        name: short. held: whether it held. text: the figures that say so.
        comparison: it is about being cheaper than others, which a busy machine can spoil, not about the run itself.
    """

    name: str
    held: bool
    text: str
    comparison: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """One request in an engine's or provider's own log.

    Attributes:
        request_id: the client's id for it, as it arrived.
        namespace: of the Pod that logged it. tier: likewise ("" for a provider's Pod, which knows no tier).
        outcome: finished, aborted, rejected or failed.
        prompt_tokens, completion_tokens: that it counted.
    """

    request_id: str
    namespace: str
    tier: str
    outcome: str
    prompt_tokens: int | None
    completion_tokens: int | None


def answered_upstream(name: str, served: Iterable[Served], upstream: Iterable[Upstream]) -> Check:
    """Every request that a client calls answered was finished by exactly one upstream, of the tier it was told.

    Args:
        name: of the check.
        served: what clients saw.
        upstream: what upstreams logged, all arms together.
    """
    finished: dict[str, list[Upstream]] = {}
    for line in upstream:
        if line.outcome == "finished":
            finished.setdefault(line.request_id, []).append(line)
    wrong: Counter[str] = Counter()
    count = 0
    for record in served:
        if not record.ok:
            continue
        count += 1
        found = finished.get(record.request_id, [])
        if len(found) != 1:
            wrong["unknown upstream" if not found else "served twice"] += 1
            continue
        line = found[0]
        if line.tier and line.tier != record.tier:
            wrong["another tier"] += 1
        if (line.prompt_tokens, line.completion_tokens) != (record.prompt_tokens, record.completion_tokens):
            wrong["other token counts"] += 1
    if not count:
        return Check(name, held=False, text="no request was answered")
    words = ", ".join(f"{number} {why}" for why, number in sorted(wrong.items()))
    return Check(
        name, held=not wrong, text=f"{count} answers, each found in one upstream's log" if not wrong else words
    )


def no_failures(name: str, served: Sequence[Served], *, least: int = 1) -> Check:
    """Every request was answered in full."""
    failed = Counter(record.error or f"status {record.status}" for record in served if not record.ok)
    words = "; ".join(f"{count} x {why}" for why, count in failed.most_common(3))
    held = not failed and len(served) >= least
    return Check(
        name, held=held, text=f"{len(served)} requests, {sum(failed.values())} failed{': ' if words else ''}{words}"
    )


def client_kept_up(served: Sequence[Served], *, limit_seconds: float = 0.1) -> Check:
    """Requests were sent when the trace has them: else it was the client that was measured."""
    late = sorted(record.sent_seconds - record.scheduled_seconds for record in served)
    if not late:
        return Check("client kept up", held=False, text="no request was sent")
    worst = late[max(0, int(0.99 * len(late)) - 1)]
    return Check("client kept up", worst <= limit_seconds, f"99% sent within {1000 * worst:.0f} ms of their time")


def floor_kept(class_name: str, score: float | None, floor: float | None, scatter: float = 0.0) -> Check:
    """A class's realised mean score is not below its floor, but for the scatter of a random split.

    Args:
        class_name: of the class.
        score: realised mean; None: not known.
        floor: least that is accepted; None: none.
        scatter: standard error of the mean.
    """
    name = f"floor of {class_name} kept"
    if floor is None:
        return Check(name, held=True, text="no floor")
    if score is None:
        return Check(name, held=False, text="score of the mix is not known")
    text = f"score {score:.3f}, floor {floor:.3f}, standard error {scatter:.3f}"
    return Check(name, score >= floor - STANDARD_ERRORS * scatter, text)


def floor_binds(scores: Mapping[str, tuple[float | None, float | None]]) -> Check:
    """At least one class sits on its floor: without a floor that binds, cheap is easy.

    Args:
        scores: class -> (realised score, floor).
    """
    near = [
        f"{name} {score:.3f} >= {floor:.3f}"
        for name, (score, floor) in sorted(scores.items())
        if score is not None and floor is not None and score <= floor + BINDING_MARGIN
    ]
    return Check("a floor binds", bool(near), ", ".join(near) or "no class lies near its floor")


@dataclass(frozen=True, slots=True)
class Standing:
    """One arm in a comparison: what it cost and how much of its objective it met.

    Attributes:
        name: of the arm.
        cost: in the run's currency, over the same window.
        attainment: share of requests within their objective, 0 to 1.
        worst: the worst class's.
    """

    name: str
    cost: float
    attainment: float
    worst: float


def cheaper(name: str, ours: Standing, other: Standing, *, promised: float, tolerance: float = 0.005) -> Check:
    """We cost less, keep what each class promises, and meet the objective at least as often.

    Args:
        name: of the check.
        ours: the arm that shall be cheaper.
        other: what it is compared with.
        promised: share of requests that each class's objective promises.
        tolerance: difference in attainment that counts as the same: the scatter of a share near 0.99 of 1,700 requests
            is 0.0024, of the difference of two 0.0034.
    """
    factor = other.cost / ours.cost if ours.cost > 0 else 0.0
    figures = (
        f"{factor:.2f}x: {ours.cost:.4f} against {other.cost:.4f}; attainment {ours.attainment:.1%} against "
        f"{other.attainment:.1%}"
    )
    if ours.worst < promised:
        text = f"{figures}; our worst class has {ours.worst:.1%} of {promised:.0%}"
        return Check(name, held=False, text=text, comparison=True)
    same = ours.attainment >= other.attainment - tolerance
    return Check(name, held=ours.cost < other.cost and same, text=figures, comparison=True)
