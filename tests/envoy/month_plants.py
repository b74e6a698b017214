"""Defects that the bench must notice, by name."""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace

from tierwise import planner
from tierwise.core.plan import Plan
from tierwise.core.situation import Settings
from tierwise.core.world import World
from tierwise.render.envoy.bundle import GatewayConfig

RESETS = re.compile(r"until it resets at (%[^%]*%|[0-9TZ:-]+)")


def _without_ladder(made: Plan) -> Plan:
    """What is decided reaches no gateway."""

    def stripped(status):
        return {name: value for name, value in status.items() if name != "enforcement"}

    return replace(made, statuses=tuple(replace(one, status=stripped(one.status)) for one in made.statuses))


def plan(plant: str, seen: World, settings: Settings) -> Plan:
    """The planner's round, with the defect."""
    made = planner.plan(seen, settings)
    return _without_ladder(made) if plant == "no-ladder" else made


def change(plant: str) -> Callable[[GatewayConfig], GatewayConfig] | None:
    """What is done to a rendered configuration; None: nothing."""
    return _mute if plant == "mute" else None


def _mute(config: GatewayConfig) -> GatewayConfig:
    """Refusals that do not say until when."""

    def without(resources):
        return json.loads(RESETS.sub("for a while", json.dumps(resources)))

    bundles = {
        name: replace(bundle, routes=without(bundle.routes), hash=f"{bundle.hash}-mute")
        for name, bundle in config.namespaces.items()
    }
    return dataclasses.replace(config, shared=without(config.shared), namespaces=bundles)


def doubled(plant: str) -> bool:
    """Whether Prometheus tells of each gateway twice, as two of them without deduplication do."""
    return plant == "counted-twice"


PLANTS = ("no-ladder", "counted-twice", "mute")
