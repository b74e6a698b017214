"""What changes, object by object: a unified diff of YAML for people, and the parts for programs."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tierwise import yaml_text
from tierwise.render import labels

_SERVER = {
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
}
"""Metadata that the API server writes."""


@dataclass(frozen=True, slots=True)
class Change:
    """One object or Envoy resource that differs.

    Attributes:
        action: create, change or delete. kind, namespace, name: which. before, after: None where there is none.
        where: file and line, for objects that a manifest names.
    """

    action: str
    kind: str
    namespace: str
    name: str
    before: Mapping[str, Any] | None = field(repr=False)
    after: Mapping[str, Any] | None = field(repr=False)
    where: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """Unified diff without headers. Made when asked for: most are not shown."""
        old, new = to_lines(self.before), to_lines(self.after)
        return tuple(difflib.unified_diff(old, new, lineterm="", n=2))[2:]


def change(
    kind: str,
    namespace: str,
    name: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    where: str = "",
) -> Change | None:
    """The difference; None when there is none."""
    if before == after:
        return None
    action = "create" if before is None else "delete" if after is None else "change"
    return Change(action, kind, namespace, name, before, after, where)


def to_lines(value: Mapping[str, Any] | None) -> list[str]:
    """YAML, one line per field; long texts (Lua, JSON) in block form so that a diff shows the line that changed."""
    if value is None:
        return []
    plain = json.loads(json.dumps(value, default=str))
    return yaml_text.dump(plain, sort_keys=True, blocks=True).splitlines()


def wanted(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """An object as its owner wants it: without status and what the API server adds."""
    metadata = {
        key: value for key, value in manifest["metadata"].items() if key not in _SERVER and key != "ownerReferences"
    }
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != labels.RENDERED_ANNOTATION}
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {
        **{key: value for key, value in manifest.items() if key not in {"status", "metadata"}},
        "metadata": metadata,
    }


def folded(lines: Iterable[str], most: int) -> list[str]:
    """The first `most` lines and how many are left."""
    held = list(lines)
    if most <= 0 or len(held) <= most:
        return held
    return [*held[:most], f"... {len(held) - most} more lines: --full shows them"]


def unified(before: Iterable[str], after: Iterable[str]) -> tuple[str, ...]:
    """Removed and added lines among all others, without headers."""
    return tuple(line for line in difflib.ndiff(list(before), list(after)) if not line.startswith("?"))
