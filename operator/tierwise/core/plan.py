"""What a planning round wants done. The shell applies it and decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory

Manifest: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class ReplicaBounds:
    """Least and most replicas of a tier, as the loop wants them; `max` 0 means: scaled to zero on purpose.

    `running_target` is what the loop measured a full replica to run: requests at which an autoscaler may add one.
    """

    min: int
    max: int
    running_target: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """Names one object of the API server."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class StatusApply:
    """A status to apply server-side.

    Attributes:
        target: whose status.
        status: the fields this manager owns, camelCase, as they shall be (absent = not owned).
        manager_suffix: "" for the leader's own fields; "gateway-<replica>" for a replica's entry in
            `status.gateways[]`.
    """

    target: ObjectRef
    status: Mapping[str, Any]
    manager_suffix: str = ""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A Kubernetes Event (events.k8s.io/v1) to record once.

    Attributes:
        regarding: the object it is about.
        type: Normal or Warning. reason: CamelCase. action: CamelCase. note: up to 1024 characters.
    """

    regarding: ObjectRef
    type: str
    reason: str
    action: str
    note: str


@dataclass(frozen=True, slots=True, order=True)
class Gauge:
    """A figure for the operator's own metrics: name without prefix, sorted label pairs, value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one planning round, in the order in which it is applied.

    Attributes:
        apply: manifests to apply server-side (only those that differ from what the world shows).
        scale: Deployment -> replicas, for the steps that an HPA does not take (0 to 1 and 1 to 0).
        delete: owned objects that no longer belong.
        statuses: only those that differ from what the world shows.
        events: new events.
        ledger: the accounts after this round; the shell keeps them and gives them back in the next world.
        next_round_seconds: when to plan again even if nothing happens.
        memory: what the loop remembers; the shell keeps it and gives it back in the next world.
        records: what was decided and what decisions were found to cost, for the log: JSON values, one mapping each.
        gauges: figures that move every round, for `/metrics`; they are never written to a status.
        books: accounts to keep whole, as manifests that the shell signs; after the statuses.
    """

    apply: tuple[Manifest, ...] = ()
    scale: tuple[tuple[ObjectRef, int], ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    statuses: tuple[StatusApply, ...] = ()
    events: tuple[EventRecord, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    next_round_seconds: float = 30.0
    memory: LoopMemory = field(default_factory=LoopMemory)
    gauges: tuple[Gauge, ...] = ()
    books: tuple[Manifest, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()
