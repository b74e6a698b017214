"""What is known about each inference engine: port, health, metric names, a sane autoscaling target. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from tierwise.api.in_cluster import Engine, InCluster, ScalingSignal


@dataclass(frozen=True, slots=True)
class Preset:
    """One engine's defaults; a tier overrides each.

    Attributes:
        port: TCP port of the OpenAI-compatible server.
        health_path: answers 200 once the model is loaded.
        metrics_path: Prometheus endpoint on the same port.
        running, waiting: gauges of requests. kv_cache_usage: gauge, 0 to 1. Empty: the engine has none.
        targets: per replica average that the autoscaler holds, by signal.
    """

    port: int
    health_path: str
    targets: Mapping[ScalingSignal, Decimal]
    metrics_path: str = "/metrics"
    running: str = ""
    waiting: str = ""
    kv_cache_usage: str = ""


# Targets leave head-room below the engines' default of 256 running sequences (vLLM --max-num-seqs): inter-token latency
# grows with each, and a scale-up needs time. They are starting points; bounds come from the loop.
_TARGETS: Mapping[ScalingSignal, Decimal] = {
    ScalingSignal.RUNNING_REQUESTS: Decimal(48),
    ScalingSignal.WAITING_REQUESTS: Decimal(4),
    ScalingSignal.KV_CACHE_USAGE: Decimal("0.8"),
    ScalingSignal.CPU: Decimal(70),
}

PRESETS: Mapping[Engine, Preset] = {
    Engine.VLLM: Preset(
        port=8000,
        health_path="/health",
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        kv_cache_usage="vllm:kv_cache_usage_perc",
        targets=_TARGETS,
    ),
    Engine.SGLANG: Preset(
        port=30000,
        health_path="/health",
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        kv_cache_usage="sglang:token_usage",
        targets=_TARGETS,
    ),
    # llama.cpp serves few sequences at once (--parallel): its targets are lower.
    Engine.LLAMA_CPP: Preset(
        port=8080,
        health_path="/health",
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
        kv_cache_usage="llamacpp:kv_cache_usage_ratio",
        targets={**_TARGETS, ScalingSignal.RUNNING_REQUESTS: Decimal(4), ScalingSignal.WAITING_REQUESTS: Decimal(1)},
    ),
    Engine.CUSTOM: Preset(port=8000, health_path="/health", targets=_TARGETS),
}


def port(spec: InCluster) -> int:
    """Port that the engine listens on."""
    return spec.port if spec.port is not None else PRESETS[spec.engine].port


def health_path(spec: InCluster) -> str:
    """Path that answers 200 when the engine takes requests."""
    return spec.health.path if spec.health is not None else PRESETS[spec.engine].health_path


def metrics_path(spec: InCluster) -> str:
    """Path of the Prometheus endpoint."""
    return spec.metrics.path if spec.metrics is not None else PRESETS[spec.engine].metrics_path


def scaling_target(spec: InCluster) -> Decimal:
    """Average of the autoscaling signal per replica."""
    if spec.autoscaling.target is not None:
        return spec.autoscaling.target.value
    return PRESETS[spec.engine].targets[spec.autoscaling.signal]


def signal_metric(spec: InCluster) -> str:
    """The engine's own metric behind the autoscaling signal; empty for CPU or where the engine has none."""
    preset, names = PRESETS[spec.engine], spec.metrics.names if spec.metrics is not None else None
    match spec.autoscaling.signal:
        case ScalingSignal.RUNNING_REQUESTS:
            return (names.running_requests if names else None) or preset.running
        case ScalingSignal.WAITING_REQUESTS:
            return (names.waiting_requests if names else None) or preset.waiting
        case ScalingSignal.KV_CACHE_USAGE:
            return (names.kv_cache_usage if names else None) or preset.kv_cache_usage
        case _:
            return ""
