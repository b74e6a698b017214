"""What the month's namespace consists of, and its prices: two classes, a tier in the cluster and two providers."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from envoy_lab import consumer, in_cluster, policy
from month_cluster import Engine
from month_wire import Tokens

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget

NAMESPACE = "legal"
BUDGET = "ceiling"
START = datetime(2026, 11, 1, tzinfo=UTC)
REPLICAS = 6
ENGINE = Engine(saturation=6.0, idle_seconds=1.5, startup=timedelta(seconds=180))
TARGET = 12
"""Running requests per replica that the autoscaler holds."""
LADDER = (("50", "Notify"), ("75", "Downgrade"), ("85", "Throttle"), ("100", "Deny"))
MILLION = Decimal(1_000_000)
KEYS = {name: f"tw-{NAMESPACE}-{name}-" + 3 * "0123456789" for name in ("app", "tool")}


@dataclass(frozen=True, slots=True)
class Price:
    """Per million tokens."""

    input: Decimal
    cached: Decimal
    output: Decimal

    def of(self, tokens: Tokens) -> Decimal:
        """What they cost."""
        fresh = tokens.prompt - tokens.cached
        return (fresh * self.input + tokens.cached * self.cached + tokens.completion * self.output) / MILLION


REPLICA_HOUR = Decimal("0.20")
PRICES = {
    "frontier": Price(Decimal(15), Decimal("1.50"), Decimal(60)),
    "mini": Price(Decimal(6), Decimal("0.60"), Decimal(24)),
}
RAISED = Price(Decimal(16), Decimal("1.60"), Decimal(66))
"""What the dear provider asks from the middle of the month on."""


def frontier(url: str, price: Price) -> ModelTier:
    """The dear one."""
    return _provider("frontier", url, price, "0.97")


def tiers(frontier_url: str, mini_url: str) -> list[ModelTier]:
    """All three."""
    own = in_cluster(
        "compact",
        NAMESPACE,
        inCluster={
            "engine": "VLLM",
            "image": "vllm/vllm-openai:v0.24.0",
            "price": {"perReplicaHour": str(REPLICA_HOUR)},
            "replicas": {"min": 1, "max": REPLICAS, "startupSeconds": int(ENGINE.startup.total_seconds())},
            "capacity": {"tokensPerSecond": "9"},
            "autoscaling": {"signal": "RunningRequests", "target": str(TARGET)},
        },
        quality=_quality("0.85", "0.80"),
    )
    return [own, frontier(frontier_url, PRICES["frontier"]), _provider("mini", mini_url, PRICES["mini"], "0.82")]


def _provider(name: str, url: str, price: Price, score: str) -> ModelTier:
    return ModelTier.parse(
        {
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}"},
            "spec": {
                "model": f"provider-{name}",
                "clearance": "Internal",
                "quality": _quality(score, score),
                "external": {
                    "url": url,
                    "allowPlaintext": True,
                    "price": {
                        "inputPerMillionTokens": str(price.input),
                        "cachedInputPerMillionTokens": str(price.cached),
                        "outputPerMillionTokens": str(price.output),
                    },
                },
            },
        }
    )


def _quality(routine: str, hard: str) -> list[dict[str, str]]:
    return [{"task": "routine", "score": routine}, {"task": "hard", "score": hard}]


def rule(step: timedelta):
    """The policy; its times are those of the clock's steps."""
    fallback = {"when": ["ConnectFailure", "ServerError"], "attempts": 2}

    def one(name: str, task: str, least: str, *names: str) -> dict[str, Any]:
        return {
            "name": name,
            "match": {"headers": [{"name": "x-class", "value": name}]},
            "task": task,
            "quality": {"minScore": least},
            "tiers": [{"name": tier} for tier in names],
            "fallback": fallback,
        }

    seconds = int(step.total_seconds())
    return policy(
        namespace=NAMESPACE,
        classes=[
            one("chat", "routine", "0.80", "compact", "mini"),
            one("reason", "hard", "0.90", "frontier", "mini", "compact"),
        ],
        referenceTier="frontier",
        rebalance={"interval": f"{seconds}s", "cooldown": f"{2 * seconds}s", "maxStepPercent": 50},
    )


def callers():
    """Two, each with a key."""
    return [consumer(name, NAMESPACE) for name in KEYS]


def secrets() -> dict[str, dict[str, str]]:
    """Their keys, by namespace and name."""
    return {f"{NAMESPACE}/{name}-key": {"token": key} for name, key in KEYS.items()}


def budget(ceiling: Decimal, created: datetime = START, ladder=LADDER, **spec: Any) -> NamespaceBudget:
    """Over replicas and tokens together."""
    return NamespaceBudget.parse(
        {
            "metadata": {
                "name": BUDGET,
                "namespace": NAMESPACE,
                "uid": f"uid-{BUDGET}",
                "creationTimestamp": created.isoformat(),
            },
            "spec": {
                "ceiling": str(ceiling.quantize(Decimal("0.01"))),
                "ladder": [
                    {"atPercent": int(at), "action": action, **({"belowFloor": True} if action == "Downgrade" else {})}
                    for at, action in ladder
                ],
                **spec,
            },
        }
    )
