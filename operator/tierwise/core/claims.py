"""Who owns a name: a model within a namespace, a hostname overall. The oldest policy wins, the others are told."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tierwise.api.meta import ApiObject
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.world import Key

_NO_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class Conflict:
    """A policy's claim that an older policy has already.

    Attributes:
        policy: the loser.
        field: `models` or `hostnames`, of its spec.
        name: what it claims in vain.
        owner: the policy that has it.
    """

    policy: Key
    field: str
    name: str
    owner: Key

    @property
    def message(self) -> str:
        """Why, and what to do, for a condition."""
        what = "model" if self.field == "models" else "hostname"
        return (
            f"spec.{self.field}: {what} {self.name!r} belongs to RoutingPolicy {self.owner}, which is older; "
            f"remove it from one of the two"
        )


@dataclass(frozen=True, slots=True)
class Claims:
    """Every name with its owner.

    Attributes:
        models: (namespace, model) -> policy.
        hostnames: hostname -> policy; the hostname leads to all models of that policy's namespace.
        conflicts: claims in vain, sorted.
    """

    models: Mapping[tuple[str, str], Key]
    hostnames: Mapping[str, Key]
    conflicts: tuple[Conflict, ...]

    def conflicts_of(self, policy: Key) -> tuple[Conflict, ...]:
        """What one policy claims in vain."""
        return tuple(conflict for conflict in self.conflicts if conflict.policy == policy)


def age_order(item: tuple[Key, ApiObject[Any, Any]]) -> tuple[datetime, str, Key]:
    """Sorts oldest first: creation time, then uid. What the API server has not stamped yet comes last."""
    key, policy = item
    return policy.metadata.creation_timestamp or _NO_TIME, policy.metadata.uid, key


def settle(policies: Mapping[Key, RoutingPolicy]) -> Claims:
    """Give each name to its oldest claimant. Policies of one namespace may share a hostname."""
    models: dict[tuple[str, str], Key] = {}
    hostnames: dict[str, Key] = {}
    conflicts: list[Conflict] = []
    for key, policy in sorted(policies.items(), key=age_order):
        for model in policy.spec.models:
            owner = models.setdefault((key.namespace, model), key)
            if owner != key:
                conflicts.append(Conflict(key, "models", model, owner))
        for hostname in policy.spec.hostnames:
            owner = hostnames.setdefault(hostname, key)
            if owner.namespace != key.namespace:
                conflicts.append(Conflict(key, "hostnames", hostname, owner))
    return Claims(dict(sorted(models.items())), dict(sorted(hostnames.items())), tuple(sorted(conflicts)))
