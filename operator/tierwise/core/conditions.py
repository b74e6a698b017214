"""Conditions: what is observed about an object, with a transition time that moves only when the status does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tierwise.api.meta import Condition, ConditionStatus

(
    READY,
    RECONCILING,
    STALLED,
    METRICS_STALE,
    SPEND_UNKNOWN,
    SHADOW_INACTIVE,
    CEILING_RUNG,
    CEILING_SOFT,
    TIER_UNPRICED,
    CEILING_FORECAST,
) = (
    "Ready",
    "Reconciling",
    "Stalled",
    "MetricsStale",
    "SpendUnknown",
    "ShadowInactive",
    "CeilingRung",
    "CeilingSoft",
    "TierUnpriced",
    "CeilingForecast",
)
_MESSAGE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition before it has a time.

    Attributes:
        type: of the condition. holds: True or False. reason: CamelCase. message: for people, with the remedy.
    """

    type: str
    holds: bool
    reason: str
    message: str = ""


def ready(reason: str, message: str = "") -> Finding:
    """Ready is True."""
    return Finding(READY, True, reason, message)


def not_ready(reason: str, message: str) -> Finding:
    """Ready is False."""
    return Finding(READY, False, reason, message)


def invalid(why: str, *, held: bool) -> tuple[Finding, ...]:
    """An object whose spec can not be read. `held`: the last one that could is in effect."""
    message = f"the last valid spec stays in effect; {why}" if held else why
    return stalled("InvalidSpec", message)


def stalled(reason: str, message: str) -> tuple[Finding, ...]:
    """Not ready, and nothing will change that but a person."""
    return not_ready(reason, message), Finding(STALLED, True, reason, message)


def settle(
    findings: Iterable[Finding], before: Sequence[Condition], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Conditions of a status: Ready first; a condition whose status is as before keeps its transition time."""
    old = {condition.type: condition for condition in before}
    settled: list[Condition] = []
    for finding in findings:
        status = ConditionStatus.TRUE if finding.holds else ConditionStatus.FALSE
        kept = old.get(finding.type)
        same = kept is not None and kept.status is status
        settled.append(
            Condition(
                type=finding.type,
                status=status,
                observed_generation=generation,
                last_transition_time=kept.last_transition_time
                if same and kept is not None
                else now.replace(microsecond=0),
                reason=finding.reason,
                message=finding.message[:_MESSAGE_LIMIT],
            )
        )
    return tuple(sorted(settled, key=lambda condition: (condition.type != READY, condition.type)))
