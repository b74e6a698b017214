"""Carries out what a plan asks for: apply, scale, delete, status, event. Decides nothing.

Every object stands alone: an error of one is typed, counted, logged and tried again with growing pauses, and the others
go on. What the API server answers goes straight into the store, so the next snapshot sees it, and the watch's echo
of it wakes nobody.
"""

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import structlog

from tierwise.adapters import kinds
from tierwise.adapters.cluster import (
    FIELD_MANAGER,
    Cluster,
    ClusterError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from tierwise.adapters.kinds import Kind
from tierwise.core.plan import EventRecord, Manifest, ObjectRef, Plan, StatusApply
from tierwise.core.world import Key
from tierwise.runtime import objects
from tierwise.runtime.faults import FAULTS
from tierwise.runtime.store import Store
from tierwise.runtime.telemetry import Metrics

log = structlog.get_logger(__name__)

PARALLEL = 8
# After so many unanswered requests in one round the API server is taken to be down: the rest waits for the next round.
GIVE_UP_AFTER = 3
UNWATCHED_SECONDS = 600.0
EVENT_MEMORY_SECONDS = 3600.0
EVENT_MEMORY = 4096
CONTROLLER = "tierwise.dev/operator"
NOTE_LIMIT = 1024

Target: TypeAlias = tuple[str, str, str, str, str]  # verb, kind, namespace, name, manager


class TakenError(ClusterError):
    """An object with this name exists and belongs to someone else: it is left alone."""


@dataclass(frozen=True, slots=True)
class _Failure:
    digest: str
    attempts: int
    not_before: float


@dataclass(slots=True)
class Outcome:
    """What became of a round.

    Attributes:
        written: writes that the API server took.
        failed: objects whose write failed or waits for its next attempt.
        retry_seconds: when the earliest of those is due; None: none.
        problems: events about objects that someone has to do something for.
    """

    written: int = 0
    failed: int = 0
    retry_seconds: float | None = None
    problems: list[EventRecord] = field(default_factory=list)


class Writer:
    """Writes to one cluster.

    Args:
        cluster, store, metrics: where to.
        identity: this replica, for events.
        now: aware UTC clock. monotonic: seconds, for pauses.
        jitter: a number in [0, 1).
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        metrics: Metrics,
        *,
        identity: str,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._metrics = metrics
        self._identity = identity
        self._now = now
        self._monotonic = monotonic
        self._jitter = jitter
        self._failures: dict[Target, _Failure] = {}
        # What was written last and the version it gave: the same again, on the same version, is a plan that does not
        # recognise its own work. It is not written again, and counted, so that it is found.
        self._written: dict[Target, _Written] = {}
        self._events: dict[str, float] = {}

    async def carry_out(self, plan: Plan) -> Outcome:
        """All of a plan, in its order: objects, scale, deletions, statuses, events."""
        outcome = Outcome()
        down = _Down()
        await self._all(outcome, down, (self._apply(manifest) for manifest in plan.apply))
        await self._all(outcome, down, (self._scale(ref, replicas) for ref, replicas in plan.scale))
        await self._all(outcome, down, (self._delete(ref) for ref in plan.delete))
        await self._all(outcome, down, (self._status(status) for status in plan.statuses))
        await self._all(outcome, down, (self._event(event) for event in (*plan.events, *outcome.problems)))
        return outcome

    async def statuses(self, statuses: Iterable[StatusApply]) -> Outcome:
        """Statuses only: what a replica that does not decide writes about its gateways."""
        outcome = Outcome()
        await self._all(outcome, _Down(), (self._status(status) for status in statuses))
        return outcome

    async def manifests(self, manifests: Iterable[Manifest]) -> Outcome:
        """Objects only."""
        outcome = Outcome()
        await self._all(outcome, _Down(), (self._apply(manifest) for manifest in manifests))
        return outcome

    async def _all(self, outcome: Outcome, down: "_Down", jobs: Iterable["_Job"]) -> None:
        limit = asyncio.Semaphore(PARALLEL)

        async def one(job: _Job) -> None:
            async with limit:
                await self._one(outcome, down, job)

        await asyncio.gather(*(one(job) for job in jobs))

    async def _one(self, outcome: Outcome, down: "_Down", job: "_Job") -> None:
        failure = self._failures.get(job.target)
        now = self._monotonic()
        if failure is not None and failure.digest == job.digest and now < failure.not_before:
            outcome.failed += 1
            _earliest(outcome, failure.not_before - now)
            return
        if down.count >= GIVE_UP_AFTER:
            outcome.failed += 1
            _earliest(outcome, 1.0 + self._jitter())
            return
        verb, kind_name, namespace, name, _ = job.target
        held = self._written.get(job.target)
        if held is not None and held.still(job, now):
            self._metrics.suppressed.labels(kind=kind_name).inc()
            log.debug("asked to write again what has not changed", kind=kind_name, object=f"{namespace}/{name}")
            return
        try:
            version = await job.call()
        except NotFoundError as error:
            if verb == "status":  # deleted meanwhile
                return
            self._failed(outcome, job, error)
        except ClusterError as error:
            down.count += isinstance(error, UnavailableError)
            self._failed(outcome, job, error)
        except FAULTS as error:
            log.exception("a defect while writing", verb=verb, kind=kind_name, object=f"{namespace}/{name}")
            self._failed(outcome, job, InvalidError(f"{type(error).__name__}: {error}"))
        else:
            self._failures.pop(job.target, None)
            if version:
                self._written[job.target] = _Written(job.digest, version, now)
            outcome.written += 1
            self._metrics.writes.labels(kind=kind_name, verb=verb).inc()

    def _failed(self, outcome: Outcome, job: "_Job", error: ClusterError) -> None:
        verb, kind_name, namespace, name, _ = job.target
        before = self._failures.get(job.target)
        attempts = before.attempts + 1 if before is not None and before.digest == job.digest else 1
        pause = pause_seconds(error, attempts) * (0.5 + self._jitter())
        self._failures[job.target] = _Failure(job.digest, attempts, self._monotonic() + pause)
        outcome.failed += 1
        _earliest(outcome, pause)
        if job.owner is not None and isinstance(error, (TakenError, ForbiddenError, InvalidError)):
            outcome.problems.append(EventRecord(job.owner, "Warning", "ApplyFailed", "Apply", str(error)))
        self._metrics.errors.labels(where=verb, error=type(error).__name__).inc()
        log.warning(
            "write failed",
            verb=verb,
            kind=kind_name,
            object=f"{namespace}/{name}",
            error=str(error),
            attempts=attempts,
            next_attempt_seconds=round(pause, 1),
        )

    def forget(self) -> None:
        """Another replica has decided meanwhile: what this one wrote last says nothing any more."""
        self._failures.clear()
        self._written.clear()

    def _apply(self, manifest: Manifest) -> "_Job":
        kind, key = _locate(manifest)

        async def call() -> str:
            held = self._store.get(kind, key) if kind in kinds.WATCHED else None
            if held is None:
                await self._must_be_free(kind, key, manifest)
            return self._took(kind, await self._cluster.apply(manifest))

        target = ("apply", kind.name, key.namespace, key.name, FIELD_MANAGER)
        return _Job(target, _digest(manifest), call, self._version(kind, key), _owner(manifest))

    async def _must_be_free(self, kind: Kind, key: Key, manifest: Manifest) -> None:
        """Refuse to take over an object that is not ours: a forced apply would."""
        try:
            found = await self._cluster.get(kind, key.namespace, key.name)
        except NotFoundError:
            return
        wanted = {reference.get("uid") for reference in manifest["metadata"].get("ownerReferences") or ()}
        held = {reference.get("uid") for reference in found["metadata"].get("ownerReferences") or ()}
        labels = found["metadata"].get("labels") or {}
        if labels.get(objects.MANAGED_BY) != objects.MANAGER or (wanted and not wanted & held):
            raise TakenError(f"{kind.name} {key} exists and is not ours: rename it or the tier")

    def _scale(self, ref: ObjectRef, replicas: int) -> "_Job":
        kind = kinds.kind_of(ref.api_version, ref.kind)

        async def call() -> str:
            await self._cluster.scale(kind, ref.namespace, ref.name, replicas, uid=ref.uid)
            return ""

        return _Job(("scale", ref.kind, ref.namespace, ref.name, FIELD_MANAGER), str(replicas), call, "")

    def _delete(self, ref: ObjectRef) -> "_Job":
        kind = kinds.kind_of(ref.api_version, ref.kind)

        async def call() -> str:
            await self._cluster.delete(kind, ref.namespace, ref.name, uid=ref.uid)
            return ""

        return _Job(("delete", ref.kind, ref.namespace, ref.name, FIELD_MANAGER), ref.uid, call, "")

    def _status(self, status: StatusApply) -> "_Job":
        ref = status.target
        kind = kinds.kind_of(ref.api_version, ref.kind)
        key = Key(ref.namespace, ref.name)
        manager = f"{FIELD_MANAGER}-{status.manager_suffix}" if status.manager_suffix else FIELD_MANAGER
        metadata: dict[str, Any] = {"namespace": ref.namespace, "name": ref.name}
        if ref.uid:
            metadata["uid"] = ref.uid  # never onto another object that took the name
        manifest = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": metadata,
            "status": dict(status.status),
        }

        async def call() -> str:
            return self._took(kind, await self._cluster.apply_status(manifest, manager=manager))

        return _Job(
            ("status", ref.kind, ref.namespace, ref.name, manager), _digest(manifest), call, self._version(kind, key)
        )

    def _event(self, event: EventRecord) -> "_Job":
        ref = event.regarding
        digest = _digest([ref.uid or [ref.kind, ref.namespace, ref.name], event.type, event.reason, event.note])

        async def call() -> str:
            if self._is_old_news(digest):
                return ""
            moment = self._now()
            manifest = {
                "apiVersion": kinds.EVENT.api_version,
                "kind": kinds.EVENT.name,
                "metadata": {
                    "namespace": ref.namespace,
                    "name": f"{ref.name[:200]}.{digest[:8]}{int(moment.timestamp()):x}",
                },
                "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "type": event.type,
                "reason": event.reason,
                "action": event.action,
                "note": event.note[:NOTE_LIMIT],
                "reportingController": CONTROLLER,
                "reportingInstance": self._identity,
                "regarding": {
                    "apiVersion": ref.api_version,
                    "kind": ref.kind,
                    "namespace": ref.namespace,
                    "name": ref.name,
                    **({"uid": ref.uid} if ref.uid else {}),
                },
            }
            # Another replica, or this one before a lost answer, may have recorded the same.
            with contextlib.suppress(ConflictError):
                await self._cluster.create(manifest)
            self._events[digest] = self._monotonic()
            self._metrics.events.labels(reason=event.reason).inc()
            return ""

        return _Job(("event", ref.kind, ref.namespace, ref.name, digest), digest, call, "")

    def _is_old_news(self, digest: str) -> bool:
        now = self._monotonic()
        if len(self._events) > EVENT_MEMORY:
            self._events = {key: at for key, at in self._events.items() if now - at < EVENT_MEMORY_SECONDS}
        return now - self._events.get(digest, float("-inf")) < EVENT_MEMORY_SECONDS

    def _took(self, kind: Kind, answer: Mapping[str, Any]) -> str:
        self._store.put(kind, answer)
        return str((answer.get("metadata") or {}).get("resourceVersion", ""))

    def _version(self, kind: Kind, key: Key) -> str | None:
        if kind not in kinds.WATCHED:
            return None
        held = self._store.get(kind, key)
        return str((held.get("metadata") or {}).get("resourceVersion", "")) if held else ""


@dataclass(slots=True)
class _Down:
    count: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """One write.

    Attributes:
        target: what it is about. digest: of what it says. call: does it; the new version.
        version: of the object as it is seen now; empty: it is not there, or this is no matter; None: not watched.
        owner: whom to tell.
    """

    target: Target
    digest: str
    call: Callable[[], Awaitable[str]]
    version: str | None
    owner: ObjectRef | None = None


@dataclass(frozen=True, slots=True)
class _Written:
    digest: str
    version: str
    at: float

    def still(self, job: _Job, now: float) -> bool:
        """Whether it still stands. Of a kind that is not watched nobody can tell: it is written again now and then."""
        if job.digest != self.digest:
            return False
        return now - self.at < UNWATCHED_SECONDS if job.version is None else job.version == self.version


def pause_seconds(error: ClusterError, attempts: int) -> float:
    """How long to wait before the next attempt; by what would have to change for it to succeed."""
    match error:
        case UnavailableError():
            base, most = 1.0, 30.0
        case ConflictError() | NotFoundError():
            base, most = 0.5, 30.0
        case TakenError() | ForbiddenError() | InvalidError():
            base, most = 15.0, 300.0
        case _:
            base, most = 5.0, 120.0
    return float(min(most, base * 2 ** (min(attempts, 12) - 1)))


def _earliest(outcome: Outcome, seconds: float) -> None:
    outcome.retry_seconds = seconds if outcome.retry_seconds is None else min(outcome.retry_seconds, seconds)


def _digest(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _owner(manifest: Manifest) -> ObjectRef | None:
    """The object of ours that an object is made for."""
    for reference in manifest["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return ObjectRef(
                str(reference["apiVersion"]),
                str(reference["kind"]),
                str(manifest["metadata"].get("namespace", "")),
                str(reference["name"]),
                str(reference.get("uid", "")),
            )
    return None


def _locate(manifest: Manifest) -> tuple[Kind, Key]:
    return kinds.kind_of(str(manifest.get("apiVersion")), str(manifest.get("kind"))), objects.key_of(manifest)
