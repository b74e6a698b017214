"""What `explain` is made of: figures and conditions as values for programs, and lines of words."""

import textwrap
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from tierwise.api.meta import Condition
from tierwise.api.routing_policy_status import Decision, DecisionInput

WIDTH = 110


def known(**values: object) -> dict[str, Any]:
    """What is not empty."""
    return {key: value for key, value in values.items() if value not in (None, "", [], {}, ())}


def condition(conditions: Sequence[Condition], name: str) -> Condition | None:
    """The one of this type; None when there is none."""
    return next((one for one in conditions if one.type == name), None)


def condition_document(one: Condition | None) -> dict[str, Any] | None:
    """For programs."""
    if one is None:
        return None
    since = one.last_transition_time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return known(type=one.type, status=one.status.value, reason=one.reason, message=one.message, since=since)


def inputs_of(decision: Decision | None, prefix: str) -> dict[str, DecisionInput]:
    """A decision's inputs whose names begin so, by the rest of their names."""
    if decision is None:
        return {}
    return {one.name.removeprefix(prefix): one for one in decision.inputs if one.name.startswith(prefix)}


def figure(one: DecisionInput | None) -> dict[str, Any] | None:
    """An input with where it comes from; None when its value is not known."""
    if one is None or one.value is None:
        return None
    return known(
        value=f"{one.value:f}", provenance=one.provenance.value if one.provenance else None, ageSeconds=one.age_seconds
    )


def wrap(label: str, words: str, indent: int = 2) -> str:
    """Words beside a label, in lines of at most `WIDTH` characters."""
    lead = f"{' ' * indent}{label:<15}"
    return textwrap.fill(words, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False)


def money_words(value: object) -> str:
    """An amount with two decimals."""
    return f"{Decimal(str(value)):,.2f}" if value is not None else "unknown"
