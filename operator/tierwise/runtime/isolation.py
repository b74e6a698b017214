"""Planning one namespace by itself: the way out when planning them all together fails."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.plan import Plan
from tierwise.core.world import Key, World

ValueT = TypeVar("ValueT")


def namespaces(world: World) -> list[str]:
    """All namespaces that have anything of ours, sorted."""
    keys = (
        *world.tiers,
        *world.policies,
        *world.budgets,
        *world.consumers,
        *world.workloads,
        *(key for _, key in world.invalid),
    )
    return sorted({key.namespace for key in keys})


def restrict(world: World, namespace: str) -> World:
    """The world as if only this namespace had anything."""

    def own(found: Mapping[Key, ValueT]) -> dict[Key, ValueT]:
        return {key: value for key, value in found.items() if key.namespace == namespace}

    return replace(
        world,
        tiers=own(world.tiers),
        policies=own(world.policies),
        budgets=own(world.budgets),
        consumers=own(world.consumers),
        invalid={(kind, key): why for (kind, key), why in world.invalid.items() if key.namespace == namespace},
        invalid_bodies={
            (kind, key): body for (kind, key), body in world.invalid_bodies.items() if key.namespace == namespace
        },
        workloads=own(world.workloads),
        services=own(world.services),
        autoscalers=own(world.autoscalers),
        disruption_budgets=own(world.disruption_budgets),
        endpoints=own(world.endpoints),
        secrets=own(world.secrets),
        books=own(world.books),
        last_good={name: child for name, child in world.last_good.items() if name == namespace},
        gateways={name: report for name, report in world.gateways.items() if name == namespace},
    )


def merge(world: World, plans: Iterable[Plan]) -> Plan:
    """Plans of several namespaces as one; what no plan speaks of is remembered as it was."""
    plans = list(plans)
    accounts = dict(world.ledger.accounts)
    memory = world.memory
    classes, tiers, pending = dict(memory.classes), dict(memory.tiers), dict(memory.pending_since)
    ladders, without = dict(memory.ladders), dict(memory.without)
    realising = dict(memory.realising)
    for plan in plans:
        accounts.update(plan.ledger.accounts)
        classes.update(plan.memory.classes)
        tiers.update(plan.memory.tiers)
        pending.update(plan.memory.pending_since)
        ladders.update(plan.memory.ladders)
        without.update(plan.memory.without)
        realising.update(plan.memory.realising)
    return Plan(
        apply=tuple(one for plan in plans for one in plan.apply),
        scale=tuple(one for plan in plans for one in plan.scale),
        delete=tuple(one for plan in plans for one in plan.delete),
        statuses=tuple(one for plan in plans for one in plan.statuses),
        events=tuple(one for plan in plans for one in plan.events),
        ledger=Ledger(dict(sorted(accounts.items()))),
        next_round_seconds=min((plan.next_round_seconds for plan in plans), default=30.0),
        memory=LoopMemory(
            started=memory.started or min((p.memory.started for p in plans if p.memory.started), default=None),
            signals_time=max((p.memory.signals_time for p in plans if p.memory.signals_time), default=None),
            classes=classes,
            tiers=tiers,
            pending_since=pending,
            ladders=ladders,
            without=without,
            realising=realising,
        ),
        gauges=tuple(one for plan in plans for one in plan.gauges),
        books=tuple(one for plan in plans for one in plan.books),
        records=tuple(one for plan in plans for one in plan.records),
    )
