"""Whose signals are asked for, and under which names their engines expose them."""

from dataclasses import replace

from tierwise.adapters.queries import EngineMetrics, Targets
from tierwise.api.in_cluster import Engine, InCluster
from tierwise.core import engines
from tierwise.core.world import World

# What core.engines does not name: counters and histograms, and older names where one changed between versions.
_OTHERS: dict[Engine, EngineMetrics] = {
    Engine.VLLM: EngineMetrics(
        kv_cache_usage=("vllm:gpu_cache_usage_perc",),
        prompt_tokens=("vllm:prompt_tokens_total",),
        generation_tokens=("vllm:generation_tokens_total",),
        ttft=("vllm:time_to_first_token_seconds",),
        inter_token=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    ),
    Engine.SGLANG: EngineMetrics(
        prompt_tokens=("sglang:prompt_tokens_total",),
        generation_tokens=("sglang:generation_tokens_total",),
        ttft=("sglang:time_to_first_token_seconds",),
        inter_token=("sglang:inter_token_latency_seconds",),
    ),
    Engine.LLAMA_CPP: EngineMetrics(
        prompt_tokens=("llamacpp:prompt_tokens_total",),
        generation_tokens=("llamacpp:tokens_predicted_total",),
    ),
    Engine.CUSTOM: EngineMetrics(),
}


def _preset(engine: Engine) -> EngineMetrics:
    known, others = engines.PRESETS[engine], _OTHERS[engine]

    def first(name: str, more: tuple[str, ...]) -> tuple[str, ...]:
        return (name, *more) if name else more

    return replace(
        others,
        running=first(known.running, others.running),
        waiting=first(known.waiting, others.waiting),
        kv_cache_usage=first(known.kv_cache_usage, others.kv_cache_usage),
    )


PRESETS: dict[Engine, EngineMetrics] = {engine: _preset(engine) for engine in Engine}


def metrics_of(tier: InCluster) -> EngineMetrics:
    """The engine's names, those that the tier states in their place."""
    preset = PRESETS[tier.engine]
    if tier.metrics is None:
        return preset
    names = tier.metrics.names

    def stated(name: str | None, preset_names: tuple[str, ...]) -> tuple[str, ...]:
        return preset_names if name is None else (name,)

    return EngineMetrics(
        running=stated(names.running_requests, preset.running),
        waiting=stated(names.waiting_requests, preset.waiting),
        kv_cache_usage=stated(names.kv_cache_usage, preset.kv_cache_usage),
        prompt_tokens=stated(names.prompt_tokens, preset.prompt_tokens),
        generation_tokens=stated(names.generation_tokens, preset.generation_tokens),
        ttft=stated(names.time_to_first_token, preset.ttft),
        inter_token=stated(names.inter_token_latency, preset.inter_token),
    )


def targets_of(world: World, *, recover: bool) -> Targets:
    """All tiers and classes of the world; with `recover`, usage is asked for from the ledgers' checkpoints on."""
    in_cluster = {}
    external = set()
    for key, tier in world.tiers.items():
        if tier.spec.in_cluster is not None:
            in_cluster[key.namespace, key.name] = metrics_of(tier.spec.in_cluster)
        else:
            external.add((key.namespace, key.name))
    classes = {
        (key.namespace, key.name, one.name): tuple(reference.name for reference in one.tiers)
        for key, policy in world.policies.items()
        for one in policy.spec.classes
    }
    return Targets(
        in_cluster=in_cluster,
        external=frozenset(external),
        classes=classes,
        ledger_since=checkpoints(world) if recover else {},
    )


def checkpoints(world: World) -> dict[str, float]:
    """Namespace -> until when its ledger's checkpoint has counted, Unix seconds; the oldest where there are several."""
    found: dict[str, float] = {}
    for key, budget in world.budgets.items():
        checkpoint = budget.status.checkpoint
        if checkpoint is not None:
            moment = checkpoint.time.timestamp()
            found[key.namespace] = min(moment, found.get(key.namespace, moment))
    return found
