"""Strategic merge of a user's Pod template overlay: an honest subset of what kubectl does.

It merges mappings and the lists that have a merge key in the Pod API; null and `$patch: delete` remove. The other
directives (`$patch: replace`, `$retainKeys`, `$setElementOrder`, `$deleteFromPrimitiveList`) are not known: the API
server refuses them as unknown fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Value: TypeAlias = Any  # any JSON value

# patchMergeKey of the Pod API (k8s.io/api/core/v1 types.go). Lists that are not named here are replaced whole.
MERGE_KEYS: dict[str, str] = {
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}


def overlay(base: Value, patch: Value, field: str = "") -> Value:
    """`base` with `patch` laid over it; neither is changed.

    Mappings merge key by key, a null removes the key; lists with a merge key merge by it (`$patch: delete` removes an
    item), other lists and scalars are replaced.
    """
    if isinstance(patch, Mapping):
        return _maps(base if isinstance(base, Mapping) else {}, patch)
    key = MERGE_KEYS.get(field)
    if key is not None and isinstance(patch, list | tuple):
        return _lists(base if isinstance(base, list | tuple) else (), patch, key)
    return patch


def _maps(base: Mapping[str, Value], patch: Mapping[str, Value]) -> dict[str, Value]:
    merged = dict(base)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = overlay(merged.get(name), value, name)
    return merged


def _lists(base: Sequence[Value], patch: Sequence[Value], key: str) -> list[Value]:
    merged = list(base)
    for item in patch:
        at = next((i for i, old in enumerate(merged) if _same_key(old, item, key)), None)
        if isinstance(item, Mapping) and item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(overlay(None, item))
        else:
            merged[at] = overlay(merged[at], item)
    return merged


def _same_key(old: Value, new: Value, key: str) -> bool:
    return isinstance(old, Mapping) and isinstance(new, Mapping) and key in old and old.get(key) == new.get(key)
