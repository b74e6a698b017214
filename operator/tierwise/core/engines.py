"""What is known about each inference engine: port, health, metric names, a sane autoscaling target. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from tierwise.api.in_cluster import Engine, InCluster, ScalingSignal


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Names of an engine's metrics as Prometheus has them: newest first, older versions' after it; none is unknown.

    Attributes:
        running, waiting: gauges, requests.
        kv_cache_usage: gauge, 0 to 1.
        prompt_tokens, generation_tokens: counters.
        ttft, inter_token: histograms in seconds, without `_bucket`.
    """

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    kv_cache_usage: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    generation_tokens: tuple[str, ...] = ()
    ttft: tuple[str, ...] = ()
    inter_token: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preset:
    """One engine's defaults; a tier overrides each.

    Attributes:
        port: TCP port of the OpenAI-compatible server.
        health_path: answers 200 once the model is loaded.
        metrics: names of its metrics.
        metrics_path: Prometheus endpoint on the same port.
        targets: per replica average that the autoscaler holds, by signal.
    """

    port: int
    health_path: str
    targets: Mapping[ScalingSignal, Decimal]
    metrics: MetricNames = field(default_factory=MetricNames)
    metrics_path: str = "/metrics"


# Targets leave head-room below the engines' default of 256 running sequences (vLLM --max-num-seqs): inter-token latency
# grows with each, and a scale-up needs time. They are starting points; bounds come from the loop.
_TARGETS: Mapping[ScalingSignal, Decimal] = {
    ScalingSignal.RUNNING_REQUESTS: Decimal(48),
    ScalingSignal.WAITING_REQUESTS: Decimal(4),
    ScalingSignal.KV_CACHE_USAGE: Decimal("0.8"),
    ScalingSignal.CPU: Decimal(70),
}

PRESETS: Mapping[Engine, Preset] = {
    # Names: vllm/v1/metrics/loggers.py; the second ones until 0.10 (cache) and 0.11 (inter-token).
    Engine.VLLM: Preset(
        port=8000,
        health_path="/health",
        targets=_TARGETS,
        metrics=MetricNames(
            running=("vllm:num_requests_running",),
            waiting=("vllm:num_requests_waiting",),
            kv_cache_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            prompt_tokens=("vllm:prompt_tokens_total",),
            generation_tokens=("vllm:generation_tokens_total",),
            ttft=("vllm:time_to_first_token_seconds",),
            inter_token=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        ),
    ),
    # Names: python/sglang/srt/metrics/collector.py; only with --enable-metrics.
    Engine.SGLANG: Preset(
        port=30000,
        health_path="/health",
        targets=_TARGETS,
        metrics=MetricNames(
            running=("sglang:num_running_reqs",),
            waiting=("sglang:num_queue_reqs",),
            kv_cache_usage=("sglang:token_usage",),
            prompt_tokens=("sglang:prompt_tokens_total",),
            generation_tokens=("sglang:generation_tokens_total",),
            ttft=("sglang:time_to_first_token_seconds",),
            inter_token=("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        ),
    ),
    # Names: tools/server/server-context.cpp; only with --metrics. No histograms; its gauge of the KV cache went in
    # 2025. It serves few sequences at once (--parallel): its targets are lower.
    Engine.LLAMA_CPP: Preset(
        port=8080,
        health_path="/health",
        targets={**_TARGETS, ScalingSignal.RUNNING_REQUESTS: Decimal(4), ScalingSignal.WAITING_REQUESTS: Decimal(1)},
        metrics=MetricNames(
            running=("llamacpp:requests_processing",),
            waiting=("llamacpp:requests_deferred",),
            prompt_tokens=("llamacpp:prompt_tokens_total",),
            generation_tokens=("llamacpp:tokens_predicted_total",),
        ),
    ),
    Engine.CUSTOM: Preset(port=8000, health_path="/health", targets=_TARGETS),
}

# The user's name for a quantity (api.in_cluster.MetricNames) -> ours.
_OVERRIDES: Mapping[str, str] = {
    "running_requests": "running",
    "waiting_requests": "waiting",
    "kv_cache_usage": "kv_cache_usage",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "time_to_first_token": "ttft",
    "inter_token_latency": "inter_token",
}
_SIGNALS: Mapping[ScalingSignal, str] = {
    ScalingSignal.RUNNING_REQUESTS: "running",
    ScalingSignal.WAITING_REQUESTS: "waiting",
    ScalingSignal.KV_CACHE_USAGE: "kv_cache_usage",
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


def metric_names(spec: InCluster) -> MetricNames:
    """Names of the engine's metrics: the preset's, and in place of each what the tier states."""
    preset = PRESETS[spec.engine].metrics
    if spec.metrics is None:
        return preset
    stated = {ours: getattr(spec.metrics.names, theirs) for theirs, ours in _OVERRIDES.items()}
    return replace(preset, **{name: (value,) for name, value in stated.items() if value is not None})


_SEQUENCES = {"--max-num-seqs", "--max-running-requests", "--parallel", "-np"}
"""Arguments of vLLM, SGLang and llama.cpp that say how many sequences a replica runs at a time."""


def most_running(spec: InCluster) -> int | None:
    """Sequences that a replica runs at a time, as its arguments say; None where they do not."""
    arguments = [*spec.args, ""]
    for place, argument in enumerate(spec.args):
        name, _, value = argument.partition("=")
        if name in _SEQUENCES:
            text = value or arguments[place + 1]
            return int(text) if text.isdecimal() and int(text) > 0 else None
    return None


def scaling_target(spec: InCluster) -> Decimal:
    """Average of the autoscaling signal per replica."""
    if spec.autoscaling.target is not None:
        return spec.autoscaling.target.value
    return PRESETS[spec.engine].targets[spec.autoscaling.signal]


def signal_metric(spec: InCluster) -> str:
    """The engine's own metric behind the autoscaling signal; empty for CPU or where the engine has none."""
    quantity = _SIGNALS.get(spec.autoscaling.signal)
    names: tuple[str, ...] = getattr(metric_names(spec), quantity) if quantity is not None else ()
    return names[0] if names else ""


def pod_metric(name: str) -> str:
    """Name under which the metrics API serves an engine's metric: paths take no colon.

    The chart carries the rules (prometheus-adapter's format) that map one to the other.
    """
    return name.replace(":", "_")


def scaling_metrics() -> tuple[str, ...]:
    """All metrics that a preset lets an autoscaler watch, sorted: the metrics API needs a rule for each."""
    return tuple(
        sorted(
            names[0]
            for preset in PRESETS.values()
            for quantity in _SIGNALS.values()
            if (names := getattr(preset.metrics, quantity))
        )
    )
