"""Pods as the API server showed them, and the replica-seconds that they are billed for. Pure.

A replica is billed from the moment the API server has its Pod until that Pod is gone: starting, idle and terminating
replicas all cost. Times are seconds on the run's clock (0 = first request); a Pod that was there before has a negative
start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TIER_LABEL = "tierwise.dev/tier"


@dataclass(frozen=True, slots=True, order=True)
class PodKey:
    """Names one Pod for ever: a uid is never reused."""

    namespace: str
    tier: str
    uid: str


@dataclass(frozen=True, slots=True)
class PodLife:
    """One Pod's life as it was observed.

    Attributes:
        key: which.
        name: its name.
        start_seconds: first seen.
        ready_seconds: first seen ready; None: never.
        end_seconds: seen gone; None: still there when last looked.
    """

    key: PodKey
    name: str
    start_seconds: float
    ready_seconds: float | None = None
    end_seconds: float | None = None

    def exists(self, at_seconds: float) -> bool:
        """Billed at this moment."""
        return self.start_seconds <= at_seconds and (self.end_seconds is None or at_seconds < self.end_seconds)

    def is_ready(self, at_seconds: float) -> bool:
        """Has been ready, and is still there."""
        return self.exists(at_seconds) and self.ready_seconds is not None and self.ready_seconds <= at_seconds

    def billed_seconds(self, since_seconds: float, until_seconds: float) -> float:
        """Its share of a window."""
        end = until_seconds if self.end_seconds is None else min(self.end_seconds, until_seconds)
        return max(0.0, end - max(self.start_seconds, since_seconds))


@dataclass(slots=True)
class PodBook:
    """Lives of Pods, kept from watch events and from lists; the same event twice changes nothing."""

    lives: dict[PodKey, PodLife] = field(default_factory=dict)

    def seen(self, pod: Mapping[str, Any], at_seconds: float) -> None:
        """A Pod exists now."""
        found = _identify(pod)
        if found is None:
            return
        key, name = found
        life = self.lives.get(key) or PodLife(key, name, at_seconds)
        if life.ready_seconds is None and _ready(pod):
            life = replace(life, ready_seconds=at_seconds)
        if life.end_seconds is None and _ended(pod):
            life = replace(life, end_seconds=at_seconds)
        self.lives[key] = life

    def gone(self, pod: Mapping[str, Any], at_seconds: float) -> None:
        """A Pod was deleted."""
        found = _identify(pod)
        if found is None:
            return
        key, name = found
        life = self.lives.get(key) or PodLife(key, name, at_seconds)
        if life.end_seconds is None:
            self.lives[key] = replace(life, end_seconds=at_seconds)

    def listed(self, pods: Iterable[Mapping[str, Any]], at_seconds: float) -> None:
        """A complete list: what it does not hold is gone (a watch that broke may have missed the deletion)."""
        there = set()
        for pod in pods:
            self.seen(pod, at_seconds)
            found = _identify(pod)
            if found is not None:
                there.add(found[0])
        for key, life in self.lives.items():
            if life.end_seconds is None and key not in there:
                self.lives[key] = replace(life, end_seconds=at_seconds)


def _identify(pod: Mapping[str, Any]) -> tuple[PodKey, str] | None:
    metadata = pod.get("metadata") or {}
    tier = (metadata.get("labels") or {}).get(TIER_LABEL)
    if not tier or not metadata.get("uid"):
        return None
    return PodKey(str(metadata.get("namespace", "")), str(tier), str(metadata["uid"])), str(metadata.get("name", ""))


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(entry.get("type") == "Ready" and entry.get("status") == "True" for entry in conditions)


def _ended(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def of_tier(lives: Iterable[PodLife], namespace: str, tier: str) -> tuple[PodLife, ...]:
    """The lives of one tier's Pods, oldest first."""
    mine = (life for life in lives if life.key.namespace == namespace and life.key.tier == tier)
    return tuple(sorted(mine, key=lambda life: (life.start_seconds, life.name)))


def replica_seconds(lives: Iterable[PodLife], since_seconds: float, until_seconds: float) -> float:
    """Replica-seconds to bill in a window."""
    return sum(life.billed_seconds(since_seconds, until_seconds) for life in lives)


def starting_seconds(lives: Iterable[PodLife], since_seconds: float, until_seconds: float) -> float:
    """Those of them before a Pod was ready: paid for, and of no use yet."""
    total = 0.0
    for life in lives:
        ready = life.ready_seconds if life.ready_seconds is not None else until_seconds
        total += life.billed_seconds(since_seconds, min(max(ready, since_seconds), until_seconds))
    return total


def counts(lives: Iterable[PodLife], at_seconds: float) -> tuple[int, int]:
    """(existing, ready) at a moment."""
    kept = tuple(lives)
    return sum(life.exists(at_seconds) for life in kept), sum(life.is_ready(at_seconds) for life in kept)
