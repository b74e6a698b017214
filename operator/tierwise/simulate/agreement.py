"""How far the two simulators agree: on the same hours, under the same decisions or each under the planner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierwise.core.signals import Signals
from tierwise.simulate.driver import Wanted
from tierwise.simulate.events import Events
from tierwise.simulate.fluid import Fluid, FluidClass, FluidTier, Replicas, TierSlot
from tierwise.simulate.requests import RequestFeed, Requests, drawn
from tierwise.simulate.run import Controller, Feed, Record, Runner, run
from tierwise.simulate.signals import Observer
from tierwise.simulate.traces import SlotTrace


@dataclass(slots=True)
class Replayed:
    """A controller that does what another one did. `wants` has one entry per slot."""

    wants: Sequence[Wanted]
    at: int = 0

    def wanted(self) -> Wanted:
        """What is in force now."""
        return self.wants[min(self.at, len(self.wants) - 1)]

    def decide(
        self,
        seconds: float,  # noqa: ARG002 - the protocol's
        signals: Signals | None,  # noqa: ARG002
        state: Mapping[str, Replicas],  # noqa: ARG002
        seen: Mapping[str, TierSlot],  # noqa: ARG002
    ) -> Wanted:
        """The next entry."""
        wanted = self.wanted()
        self.at += 1
        return wanted


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both simulators on the same slots; all figures are simulated.

    Attributes:
        fluid_cost, events_cost: of the slots. fluid_attainment, events_attainment: class -> percent.
        requests: class -> how many.
    """

    fluid_cost: float
    events_cost: float
    fluid_attainment: Mapping[str, float]
    events_attainment: Mapping[str, float]
    requests: Mapping[str, float]

    @property
    def cost_percent(self) -> float:
        """Difference of the costs, percent of the fluid one."""
        return 100 * (self.events_cost / self.fluid_cost - 1)

    @property
    def attainment_points(self) -> float:
        """Difference of the attainments of all requests, percentage points."""
        total = sum(self.requests.values())
        fluid, events = (
            sum(shares[name] * self.requests[name] for name in self.requests) / total
            for shares in (self.fluid_attainment, self.events_attainment)
        )
        return events - fluid


def compare(
    tiers: Sequence[FluidTier],
    classes: Sequence[FluidClass],
    traces: Mapping[str, SlotTrace],
    feed: Feed,
    controller: Controller,
    observer: Observer,
    *,
    first: int,
    slots: int,
    seed: int = 0,
    again: Controller | None = None,
    singles: Mapping[str, Requests] | None = None,
) -> Agreement:
    """Run the fluid engine under a controller, then single requests drawn from the same slots under the same decisions.

    Args:
        tiers: as they truly are.
        classes: as they truly are.
        traces: by class, of equal slots.
        feed: the same demand, for the fluid engine.
        controller: who decides in the fluid run.
        observer: makes its signals.
        first: slots before the compared ones, which bring both up to date.
        slots: how many are compared.
        seed: of the requests.
        again: who decides in the event-level run; None: the decisions of the fluid one once more.
        singles: class -> its single requests, where the trace has them; None: drawn from the slots.
    """
    seconds = next(iter(traces.values())).slot_seconds
    fluid = Fluid(tiers, classes)
    fluid.scale(controller.wanted().replicas)
    record = run(Runner(fluid, controller, observer, seconds), feed, first + slots)
    requests = singles or {name: drawn(trace.part(0, first + slots), seed) for name, trace in traces.items()}
    events = Events(tiers, classes, requests, seed=seed)
    events.scale(record_wants(record)[0].replicas)
    second = again or Replayed(record_wants(record))
    other = run(Runner(events, second, observer, seconds), RequestFeed(requests, seconds), first + slots)
    events.finish()
    counted = {name: sum(values[first:]) for name, values in other.requests.items()}
    kept = {
        name: sum(flow.kept for flows in events.flows[first:] for (mine, _), flow in flows.items() if mine == name)
        for name in counted
    }
    return Agreement(
        fluid_cost=sum(record.cost[first:]),
        events_cost=sum(other.cost[first:]),
        fluid_attainment={n: _percent(sum(record.kept[n][first:]), sum(record.requests[n][first:])) for n in counted},
        events_attainment={name: _percent(kept[name], counted[name]) for name in counted},
        requests=counted,
    )


def record_wants(record: Record) -> list[Wanted]:
    """The decisions of a run, slot by slot."""
    return [
        Wanted(weights, {name: counts[at] for name, counts in record.desired.items()}, record.guards[at])
        for at, weights in enumerate(record.weights)
    ]


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 100.0
