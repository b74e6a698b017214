"""What the loop remembers between rounds. The shell keeps it in memory and hands it back; it is never stored.

After a restart it is empty, and the loop starts conservatively: nothing scales down or moves back before the history
covers its windows again, and capacity starts from what the tier's status says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tierwise.core.capacity import Capacity
from tierwise.core.credit import Credit
from tierwise.core.damping import LastMove
from tierwise.core.demand import History
from tierwise.core.ladder import LadderMemory
from tierwise.core.signals import ClassKey, TierKey


@dataclass(frozen=True, slots=True)
class IdleLatency:
    """Latency of one class on one tier, smoothed 95th percentiles in seconds; None when unknown.

    For an in-cluster tier the values are scaled back to an idle replica. `time` is when one was last measured.
    """

    time: datetime
    ttfb_seconds: float | None = None
    latency_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ClassMemory:
    """Demand, last move and latencies (by tier) of one class.

    `home`: weights from before requests went elsewhere because replicas were missing; None: they are where they belong.
    `credit`: of a floor that holds on average; None: there is none, or it holds at all times.
    """

    history: History = field(default_factory=History)
    last_move: LastMove | None = None
    latency: Mapping[str, IdleLatency] = field(default_factory=dict)
    home: Mapping[str, int] | None = None
    credit: Credit | None = None


@dataclass(frozen=True, slots=True)
class TierMemory:
    """Capacity and last change of replicas of one in-cluster tier, or what an external one takes.

    Attributes:
        capacity, last_scale: of an in-cluster tier.
        takes: requests/s that an external tier answered while it refused more; None: it refused none lately.
        refused: when it last did.
        running_target: running requests of a full replica, as the autoscaler was told; None for its preset.
        needs: (time, replicas) that were needed lately, oldest first, each more than all later ones.
    """

    capacity: Capacity | None = None
    last_scale: LastMove | None = None
    takes: float | None = None
    refused: datetime | None = None
    running_target: int | None = None
    needs: tuple[tuple[datetime, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Realising:
    """What a decision is found to cost, while it is being counted.

    Attributes:
        decided: when it was made. start, end: of the window that is counted. until: counted so far.
        before_per_hour, expected_per_hour: of the namespace, estimated by the decision. currency: of all amounts.
        demand: requests/s of all classes at the decision.
        cost, requests, seconds: counted so far. finished: the window is over.
    """

    decided: datetime
    start: datetime
    end: datetime
    before_per_hour: float
    expected_per_hour: float
    demand: float
    currency: str
    until: datetime
    cost: float = 0.0
    requests: float = 0.0
    seconds: float = 0.0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class LoopMemory:
    """All of it.

    Attributes:
        started: first round of this process, aware UTC.
        signals_time: when the newest answer of Prometheus that was learnt from was asked.
        classes, tiers: by key.
        realising: namespace -> what its last decision is found to cost.
        pending_since: namespace -> since when gateways have not acknowledged the present configuration.
        ladders: (namespace, budget) -> what its ladder remembers.
        without: namespace -> what it would have cost per hour without a ceiling, in the last round.
    """

    started: datetime | None = None
    signals_time: datetime | None = None
    classes: Mapping[ClassKey, ClassMemory] = field(default_factory=dict)
    tiers: Mapping[TierKey, TierMemory] = field(default_factory=dict)
    pending_since: Mapping[str, datetime] = field(default_factory=dict)
    ladders: Mapping[tuple[str, str], LadderMemory] = field(default_factory=dict)
    without: Mapping[str, float] = field(default_factory=dict)
    realising: Mapping[str, Realising] = field(default_factory=dict)
