"""Whether what the API server shows differs from what is wanted, in the fields that are wanted.

The API server adds defaults and rewrites quantities; neither is a difference. Without this the operator would write in
every round, or never notice that somebody changed an owned object. A field that is no longer wanted shows
by the hash that `children` puts on each object.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from tierwise.api.scalars import Quantity

Value: TypeAlias = Any  # any JSON value

# What tells items of these lists apart for the API server (listMapKeys), with the value that an absent part stands for.
# Extra items in the observed list are no difference: admission may inject a sidecar. The first spelling that
# all wanted items have counts: `ports` are a container's or a Service's.
_LIST_KEYS: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "conditions": ((("type", ""),),),
    "containers": ((("name", ""),),),
    "env": ((("name", ""),),),
    "imagePullSecrets": ((("name", ""),),),
    "initContainers": ((("name", ""),),),
    "ownerReferences": ((("uid", ""),),),
    "ports": ((("containerPort", ""), ("protocol", "TCP")), (("port", ""), ("protocol", "TCP"))),
    "topologySpreadConstraints": ((("topologyKey", ""), ("whenUnsatisfiable", "")),),
    "volumeMounts": ((("mountPath", ""),),),
    "volumes": ((("name", ""),),),
}
_QUANTITY_FIELDS = {"averageValue", "divisor", "limits", "requests", "sizeLimit"}
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
    for keys in _LIST_KEYS.get(field, ()):
        if all(isinstance(item, Mapping) and keys[0][0] in item for item in wanted):
            seen = {_identity(item, keys): item for item in observed if isinstance(item, Mapping)}
            return any(_differs(item, seen.get(_identity(item, keys)), "", quantity=quantity) for item in wanted)
    if len(wanted) != len(observed):
        return True
    return any(_differs(a, b, "", quantity=quantity) for a, b in zip(wanted, observed, strict=True))


def _identity(item: Mapping[str, Value], keys: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(str(item.get(name, absent)) for name, absent in keys)


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
