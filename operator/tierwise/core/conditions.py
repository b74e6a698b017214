"""Conditions: what is observed about an object, with a transition time that moves only when the status does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tierwise.api.meta import Condition, ConditionStatus

READY, RECONCILING, STALLED, METRICS_STALE, SPEND_UNKNOWN = (
    "Ready",
    "Reconciling",
    "Stalled",
    "MetricsStale",
    "SpendUnknown",
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
