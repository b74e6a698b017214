"""Strategic merge of a user's Pod template overlay, for the list fields that have a merge key in Kubernetes."""

from collections.abc import Mapping
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
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        return _maps(base, patch)
    key = MERGE_KEYS.get(field)
    if key is not None and isinstance(base, list | tuple) and isinstance(patch, list | tuple):
        return _lists(base, patch, key)
    return patch


def _maps(base: Mapping[str, Value], patch: Mapping[str, Value]) -> dict[str, Value]:
    merged = dict(base)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            # A mapping that is new is merged into an empty one, so that its nulls remove nothing instead of staying.
            merged[name] = overlay(merged.get(name, {}), value, name)
    return merged


def _lists(base: list[Value] | tuple[Value, ...], patch: list[Value] | tuple[Value, ...], key: str) -> list[Value]:
    merged = list(base)
    for item in patch:
        directive = isinstance(item, Mapping) and item.get("$patch") == "delete"
        at = next((i for i, old in enumerate(merged) if _same_key(old, item, key)), None)
        if directive:
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(item)
        else:
            merged[at] = overlay(merged[at], item)
    return merged


def _same_key(old: Value, new: Value, key: str) -> bool:
    return isinstance(old, Mapping) and isinstance(new, Mapping) and key in old and old.get(key) == new.get(key)
