"""A benchmark's scenarios: tiers, classes with their traces, and the manifests that a user would write for them.

`scenarios.json` composes traces, prices, quality and replica models (docs/economics.md). The truth (`FluidTier`,
`FluidClass`) and the declaration (`ModelTier`, `RoutingPolicy`) are made apart: the planner sees the latter only.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import ALL_FALLBACK_DEFAULTS
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.world import Key
from tierwise.errors import TierwiseError
from tierwise.sim.profiles import SLOWDOWN
from tierwise.sim.replica import Objective, ReplicaParams
from tierwise.simulate import traces
from tierwise.simulate.fluid import Demand, FluidClass, FluidTier, work_seconds
from tierwise.simulate.traces import SlotTrace

NAMESPACE = "bench"
POLICY = "mix"
UID = "00000000-0000-0000-0000-000000000000"
DEFAULT_EPS = 0.01
DEFAULT_SLOT = 60.0
MAX_REPLICAS = 200
"""`replicas.max` in every manifest: more than any scenario needs, so that it binds nowhere."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 512.0, 256.0
TYPICAL_UTILISATION = 0.8
"""The declared capacity: tokens/s of requests of this size at this utilisation, whatever a scenario's are."""

_PERF = (
    "itl_alpha_ms",
    "itl_beta_ms_per_seq",
    "itl_gamma_ms_per_1k_kv_tokens",
    "prefill_p0_ms",
    "prefill_p1_ms_per_1k_tok",
    "prefill_p2_ms_per_1M_tok2",
)
Times = tuple[float, float, float, float, float, float]


class ScenarioError(TierwiseError):
    """A scenario that can not be read, with the remedy."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        name: as the file has it. reference: the tier that all requests would go to ("all-large").
        floors: class -> least mean score, in the scores' scale (percent).
        tiers, classes: as they truly are. traces: class -> demand, equally many slots each.
        declared: replica tier -> its model as published (what a misfit moves away from).
        sensitive: classes that may not leave the cluster.
    """

    name: str
    reference: str
    floors: Mapping[str, float]
    tiers: tuple[FluidTier, ...]
    classes: tuple[FluidClass, ...]
    traces: Mapping[str, SlotTrace]
    declared: Mapping[str, ReplicaParams]
    sensitive: frozenset[str] = frozenset()

    @property
    def slot_seconds(self) -> float:
        """Length of a slot."""
        return next(iter(self.traces.values())).slot_seconds

    @property
    def slots(self) -> int:
        """How many there are."""
        return next(iter(self.traces.values())).slots

    @property
    def hours(self) -> float:
        """What the traces cover."""
        return self.slots * self.slot_seconds / 3600

    def demand(self, slot: int) -> dict[str, Demand]:
        """Every class's demand in a slot."""
        found = {}
        for name, trace in self.traces.items():
            count = float(trace.requests[slot])
            each = max(count, 1e-9)
            found[name] = Demand(
                count,
                float(trace.prompt_tokens[slot]) / each,
                float(trace.output_tokens[slot]) / each,
                float(trace.peak_requests[slot]),
            )
        return found


def names(path: Path, only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of a file's scenarios, or those of `only`, which must be there.

    Raises:
        ScenarioError: the file can not be read, or has no such scenario.
    """
    found = tuple(str(each["name"]) for each in _bodies(path))
    unknown = sorted(set(only) - set(found))
    if unknown:
        raise ScenarioError(f"no scenario {', '.join(unknown)}; there are {', '.join(found)}")
    return tuple(name for name in found if name in only) if only else found


def load(
    path: Path, data: Path, only: tuple[str, ...] = (), hours: tuple[float, float] | None = None
) -> list[Scenario]:
    """All scenarios of a file, or those that `only` names.

    Args:
        path: the JSON file.
        data: directory of traces and `perf_replica_params.csv`.
        only: names; empty: all.
        hours: first and last hour of the traces to use; None: all.

    Raises:
        ScenarioError: a file can not be read, or there is no such scenario.
        SlotTraceError: a trace can not be read.
    """
    perf, chosen = _perf(data / "perf_replica_params.csv"), names(path, only)
    return [_scenario(each, data, perf, hours) for each in _bodies(path) if each["name"] in chosen]


def _bodies(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    if not isinstance(found, list) or not all(isinstance(each, dict) and "name" in each for each in found):
        raise ScenarioError(f"{path}: it must be a list of scenarios, each with a name")
    return found


def _perf(path: Path) -> dict[tuple[str, str, int], Times]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[tuple[str, str, int], Times] = {}
    for row in rows:
        a, b, g, p0, p1, p2 = (float(row[name]) for name in _PERF)
        found[row["model"], row["system"], int(row["tp"])] = a, b, g, p0, p1, p2
    return found


def _scenario(
    body: Mapping[str, Any],
    data: Path,
    perf: Mapping[tuple[str, str, int], Times],
    hours: tuple[float, float] | None,
) -> Scenario:
    slot = float(body.get("sim_slot_s") or body.get("opt_slot_s") or DEFAULT_SLOT)
    read = {
        each["name"]: traces.read(data / each["trace"], slot).scaled(each["load_scale"]) for each in body["classes"]
    }
    count = min(trace.slots for trace in read.values())
    first, last = 0, count
    if hours is not None:
        first, last = (min(count, round(edge * 3600 / slot)) for edge in hours)
    tiers, declared = [], {}
    for each in body["tiers"]:
        if each["kind"] != "replica":
            prices = float(each["usd_per_mtok_in"]), float(each["usd_per_mtok_out"])
            tiers.append(FluidTier(slug(each["name"]), price_in=prices[0], price_out=prices[1]))
            continue
        model, system, width = each["perf_key"]
        times = perf.get((model, system, int(width)))
        if times is None:
            raise ScenarioError(f"{body['name']}: no replica parameters for {model} on {width} x {system}")
        params = ReplicaParams(*times, kv_tokens=int(each["kv_tokens"])).scaled(SLOWDOWN)
        declared[slug(each["name"])] = params
        tiers.append(
            FluidTier(
                slug(each["name"]),
                params,
                price_per_hour=float(each["usd_per_hour"]),
                startup_seconds=float(each["cold_start_s"]),
            )
        )
    eps = float(body.get("eps", DEFAULT_EPS))
    reference = body["reference_tier"]
    unknown = [each["name"] for each in body["classes"] if reference not in each["quality"]]
    if unknown:
        raise ScenarioError(f"{body['name']}: {reference} has no quality for {', '.join(unknown)}")
    return Scenario(
        name=body["name"],
        reference=slug(reference),
        floors={each["name"]: float(each["quality"][reference]) * (1 - eps) for each in body["classes"]},
        tiers=tuple(tiers),
        classes=tuple(_class(each) for each in body["classes"]),
        traces={name: trace.part(first, last) for name, trace in read.items()},
        declared=declared,
    )


def slug(name: str) -> str:
    """A tier's name as a ModelTier may have it."""
    text = re.sub("[^a-z0-9-]+", "-", name.lower()).strip("-")[:52].strip("-")
    return text if text[:1].isalpha() else f"tier-{text}"[:52]


def _class(body: Mapping[str, Any]) -> FluidClass:
    limits = body.get("slo") or {}
    return FluidClass(
        name=body["name"],
        objective=Objective(
            ttft_seconds=limits["ttft_ms"] / 1e3 if "ttft_ms" in limits else None,
            inter_token_seconds=limits["itl_ms"] / 1e3 if "itl_ms" in limits else None,
        ),
        p95_prompt=float(limits.get("p95_prompt", 0.0)),
        quality={slug(tier): float(score) for tier, score in body["quality"].items()},
        output_factor={slug(tier): float(factor) for tier, factor in body.get("output_mult", {}).items()},
    )


def tiers_of(scenario: Scenario) -> dict[Key, ModelTier]:
    """The ModelTiers that a user would write: declared prices, start-ups and scores, and a capacity that is a guess."""
    return {Key(NAMESPACE, tier.name): ModelTier.parse(_tier(scenario, tier)) for tier in scenario.tiers}


def declared_tokens_per_second(params: ReplicaParams) -> int:
    """Tokens/s, prompt and generated, that one replica is declared to carry: of a typical request, two digits of it."""
    work = work_seconds(params, TYPICAL_PROMPT, TYPICAL_OUTPUT)
    exact = (TYPICAL_PROMPT + TYPICAL_OUTPUT) * TYPICAL_UTILISATION / work
    return max(1, int(float(f"{exact:.1e}")))


def _tier(scenario: Scenario, tier: FluidTier) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "model": tier.name,
        "quality": [
            {"task": each.name, "score": _score(each.quality[tier.name] / 100)}
            for each in scenario.classes
            if tier.name in each.quality
        ],
    }
    if tier.params is None:
        spec["external"] = {
            "url": f"https://{tier.name}.example/v1",
            "price": {
                "inputPerMillionTokens": _plain(tier.price_in),
                "outputPerMillionTokens": _plain(tier.price_out),
            },
        }
    else:
        spec["inCluster"] = {
            "engine": "VLLM",
            "image": "vllm/vllm-openai:v0.24.0",
            "replicas": {"min": 1, "max": MAX_REPLICAS, "startupSeconds": int(tier.startup_seconds)},
            "price": {"perReplicaHour": _plain(tier.price_per_hour)},
            "capacity": {"tokensPerSecond": str(declared_tokens_per_second(scenario.declared[tier.name]))},
        }
    return _object("ModelTier", tier.name, spec)


def policy_of(scenario: Scenario) -> RoutingPolicy:
    """The RoutingPolicy that a user would write: all to the reference tier at first, everything else by default."""
    classes = []
    for each in scenario.classes:
        names = [tier.name for tier in scenario.tiers if tier.name in each.quality]
        body: dict[str, Any] = {
            "name": each.name,
            "task": each.name,
            "match": {"headers": [{"name": "x-class", "value": each.name}]},
            # The scenarios' floors are of all requests of a run.
            "quality": {"minScore": _score(scenario.floors[each.name] / 100), "holds": "OnAverage"},
            "fallback": {"when": [*(reason.value for reason in ALL_FALLBACK_DEFAULTS), "Saturated"]},
            "tiers": [{"name": name, "weight": 100 if name == scenario.reference else 0} for name in names],
        }
        limits = {
            "ttftP95": each.objective.ttft_seconds,
            "interTokenP95": each.objective.inter_token_seconds,
        }
        if each.name in scenario.sensitive:
            body["sensitivity"] = "Confidential"
        stated = {name: f"{1000 * value:g}ms" for name, value in limits.items() if value is not None}
        if stated:
            body["objective"] = stated
        classes.append(body)
    if classes:
        del classes[-1]["match"]  # the last class takes what is left
    spec = {
        "models": ["assistant"],
        "sensitivity": "Public",
        "referenceTier": scenario.reference,
        "classes": classes,
    }
    return RoutingPolicy.parse(_object("RoutingPolicy", POLICY, spec))


def _object(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "uid": UID, "generation": 1}
    return {"apiVersion": "tierwise.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": dict(spec)}


def _plain(value: float) -> str:
    return format(Decimal(str(value)), "f")


def _score(value: float) -> str:
    return format(Decimal(str(value)).quantize(Decimal("0.000001"), ROUND_FLOOR), "f")
