"""Whether what the API server shows differs from what is wanted, in the fields that are wanted.

The API server adds defaults and rewrites quantities; neither is a difference. Without this the operator would write in
every round, or never notice that somebody changed an owned object.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from tierwise.api.scalars import Quantity

Value: TypeAlias = Any  # any JSON value

# Keys by which the API server tells items of these lists apart: extra items in the observed list are not a difference
# (admission may inject a sidecar or a volume).
_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "name"),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_QUANTITY_FIELDS = {"averageValue", "limits", "requests", "sizeLimit"}
_NUMBER = re.compile(r"^[+-]?[0-9]")


def differs(wanted: Value, observed: Value) -> bool:
    """True when a field of `wanted` is missing in `observed` or has another value."""
    return _differs(wanted, observed, "", quantity=False)


def _differs(wanted: Value, observed: Value, field: str, *, quantity: bool) -> bool:
    quantity = quantity or field in _QUANTITY_FIELDS
    if isinstance(wanted, Mapping):
        if not isinstance(observed, Mapping):
            # An empty mapping (`emptyDir: {}`) and absence are told apart; null and absence are not.
            return bool(wanted) or observed is not None
        return any(_differs(value, observed.get(name), name, quantity=quantity) for name, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return _lists_differ(wanted, observed, field, quantity=quantity)
    if quantity and isinstance(wanted, str | int) and isinstance(observed, str | int):
        return _amount(wanted) != _amount(observed)
    if wanted in ("", None) and observed in ("", None):
        return False
    return bool(wanted != observed)


def _lists_differ(wanted: Value, observed: Value, field: str, *, quantity: bool) -> bool:
    if observed is None:
        return bool(wanted)
    if not isinstance(observed, list | tuple):
        return True
    for key in _LIST_KEYS.get(field, ()):
        if all(isinstance(item, Mapping) and key in item for item in wanted):
            seen = {item.get(key): item for item in observed if isinstance(item, Mapping)}
            return any(_differs(item, seen.get(item[key]), "", quantity=quantity) for item in wanted)
    if len(wanted) != len(observed):
        return True
    return any(_differs(a, b, "", quantity=quantity) for a, b in zip(wanted, observed, strict=True))


def _amount(value: str | int) -> Decimal | str:
    """A quantity's number; text that is none stays text."""
    if isinstance(value, int):
        return Decimal(value)
    if not _NUMBER.match(value):
        return value
    try:
        return Quantity.parse(value).value
    except ValueError:
        return value
