"""The part of a ModelTier that Tierwise runs: engine, image, replicas, autoscaling, price."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.scalars import Duration, FreeForm, FrozenMap, Int, Money, PositiveDecimal, Quantity
from tierwise.api.shapes import (
    ATOMIC,
    Currency,
    Image,
    MetricName,
    ObjectName,
    UpstreamModel,
    UrlPath,
    list_map,
    unique,
)


class Engine(StrEnum):
    """Inference engines whose command line, port, probes and metrics Tierwise knows; Custom knows none."""

    VLLM = "VLLM"
    SGLANG = "SGLang"
    LLAMA_CPP = "LlamaCpp"
    CUSTOM = "Custom"


class AutoscalingProvider(StrEnum):
    """Who moves the number of replicas between the bounds that Tierwise sets."""

    HPA = "HPA"
    KEDA = "KEDA"


class ScalingSignal(StrEnum):
    """What the autoscaler watches."""

    RUNNING_REQUESTS = "RunningRequests"
    WAITING_REQUESTS = "WaitingRequests"
    KV_CACHE_USAGE = "KVCacheUsage"
    CPU = "CPU"


class ScalingPolicyType(StrEnum):
    """Unit of a scaling policy's value."""

    PODS = "Pods"
    PERCENT = "Percent"


class SelectPolicy(StrEnum):
    """Which of several scaling policies applies."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class EnvVar(ApiModel):
    """An environment variable of the engine's container."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "value and valueFrom are both set: keep one of them",
            lambda e: e.value is None or e.value_from is None,
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the variable."""
    value: Annotated[str | None, Field(max_length=8192)] = None
    """Value of the variable."""
    value_from: FreeForm | None = None
    """Source of the value, as in a Pod: secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef."""


Quantities = Annotated[FrozenMap[Quantity], Field(max_length=16, json_schema_extra={"maxProperties": 16})]


class Resources(ApiModel):
    """Compute resources of the engine's container, as in a Pod."""

    limits: Quantities | None = None
    """Most that the container may use, such as {nvidia.com/gpu: "1"}."""
    requests: Quantities | None = None
    """What the container is given for certain. Defaults to the limits."""


class ReplicaPrice(ApiModel):
    """Price of one replica."""

    per_replica_hour: Money
    """What one replica costs per hour, accelerators and their node's share included, as a quoted decimal number such
    as "2.95"."""
    currency: Currency = "USD"
    """ISO 4217 code of the price's currency."""


class Replicas(ApiModel):
    """How many replicas the tier may have."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.min <= self.max",
            "replicas.min is above replicas.max: lower min or raise max",
            lambda r: r.min <= r.max,
            "min",
        ),
    )

    min: Annotated[Int, Field(ge=0, le=10_000)] = 1
    """Fewest replicas. 0 lets an idle tier scale to zero: the first request afterwards is answered by another tier
    of its class, or fails when there is none, until a replica has started."""
    max: Annotated[Int, Field(ge=1, le=10_000)]
    """Most replicas."""
    startup_seconds: Annotated[Int, Field(ge=0, le=86_400)] = 120
    """Seconds from the creation of a replica until it takes requests, image and weights loaded: assumed until measured.
    A starting replica costs its full price."""


class ScalingPolicy(ApiModel):
    """A limit on how fast replicas are added or removed."""

    type: ScalingPolicyType
    """Pods (a number) or Percent (of the current number)."""
    value: Annotated[Int, Field(ge=1, le=10_000)]
    """How many, or how many percent, within the period."""
    period_seconds: Annotated[Int, Field(ge=1, le=1800)]
    """Length of the period in seconds."""


class ScalingRules(ApiModel):
    """How the autoscaler moves in one direction."""

    stabilization_window_seconds: Annotated[Int | None, Field(ge=0, le=3600)] = None
    """Seconds of past recommendations that the autoscaler considers before it moves."""
    select_policy: SelectPolicy | None = None
    """Which policy applies when there are several: Max (default), Min, or Disabled for no movement in this
    direction."""
    policies: Annotated[tuple[ScalingPolicy, ...], Field(max_length=8, json_schema_extra=ATOMIC)] = ()
    """Limits on the speed."""


class ScalingBehavior(ApiModel):
    """How fast the autoscaler moves, as `behavior` of a HorizontalPodAutoscaler v2."""

    scale_up: ScalingRules | None = None
    """How replicas are added."""
    scale_down: ScalingRules | None = None
    """How replicas are removed."""


class Autoscaling(ApiModel):
    """How replicas follow load between the bounds that the plan sets."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.target) || (type(self.target) == int ? self.target > 0 : "
            "(!isQuantity(self.target) || quantity(self.target).compareTo(quantity('0')) > 0))",
            'autoscaling.target must be above zero: write the average per replica to hold, such as "48" running '
            "requests",
            lambda a: a.target is None or a.target.value > 0,
            "target",
        ),
    )

    provider: AutoscalingProvider = AutoscalingProvider.HPA
    """HPA: a HorizontalPodAutoscaler that Tierwise owns. KEDA: a ScaledObject, where KEDA is installed."""
    signal: ScalingSignal = ScalingSignal.RUNNING_REQUESTS
    """What is watched: RunningRequests, WaitingRequests (queued), KVCacheUsage (share of the cache, 0 to 1) or CPU
    (percent of the request)."""
    target: Quantity | None = None
    """Average of the signal per replica that the autoscaler holds, such as "48" running requests, "800m" of the KV
    cache, or 70 percent of CPU. When absent: a preset of engine and signal."""
    behavior: ScalingBehavior | None = None
    """How fast replicas are added and removed. When absent: quickly up, slowly down."""


class ReplicaCapacity(ApiModel):
    """What one replica can serve within the objective: assumed until measured."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.requestsPerSecond) || has(self.tokensPerSecond)",
            "capacity states nothing: set requestsPerSecond or tokensPerSecond, or remove capacity",
            lambda c: c.requests_per_second is not None or c.tokens_per_second is not None,
        ),
    )

    requests_per_second: PositiveDecimal | None = None
    """Requests per second of one replica, as a quoted decimal number such as "6.5"."""
    tokens_per_second: PositiveDecimal | None = None
    """Tokens per second of one replica, prompt and generated together, as a quoted decimal number."""


class MetricNames(ApiModel):
    """Names of the engine's metrics, where they differ from the engine's preset."""

    running_requests: MetricName | None = None
    """Gauge of requests that are being computed."""
    waiting_requests: MetricName | None = None
    """Gauge of requests that wait."""
    kv_cache_usage: MetricName | None = None
    """Gauge of the share of the KV cache in use, 0 to 1."""
    prompt_tokens: MetricName | None = None
    """Counter of prompt tokens."""
    generation_tokens: MetricName | None = None
    """Counter of generated tokens."""
    time_to_first_token: MetricName | None = None
    """Histogram of the time to first token in seconds."""
    inter_token_latency: MetricName | None = None
    """Histogram of the time between tokens in seconds."""
    request_success: MetricName | None = None
    """Counter of requests that ended."""


class EngineMetrics(ApiModel):
    """Where and under which names the engine exposes its metrics."""

    path: UrlPath = "/metrics"
    """Path of the Prometheus endpoint on the engine's port."""
    names: MetricNames = MetricNames()
    """Names that differ from the engine's preset. Engine Custom has no preset."""


class EngineHealth(ApiModel):
    """How to tell that the engine can take requests."""

    path: UrlPath
    """Path that answers 200 when the engine can take requests, such as "/health"."""


class PickerFailure(StrEnum):
    """What happens to a request when its endpoint picker does not answer, as the inference extension names it."""

    OPEN = "FailOpen"
    CLOSE = "FailClose"


_LONGEST_PICK_SECONDS = 60


class EndpointPicker(ApiModel):
    """A service that chooses the replica of each request, as the Gateway API Inference Extension has it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "duration(self.timeout) <= duration('60s')",
            "timeout must be at most 60s, as requests wait for it when the picker is silent: write a time such as "
            '"500ms"',
            lambda p: p.timeout.seconds <= _LONGEST_PICK_SECONDS,
            "timeout",
        ),
    )

    name: ObjectName
    """Name of its Service, in the tier's namespace and no other: it sees prompts."""
    port: Annotated[Int, Field(ge=1, le=65_535)] = 9002
    """Port of its gRPC service, without TLS (`--secure-serving=false` of the extension's own picker)."""
    failure_mode: PickerFailure = PickerFailure.CLOSE
    """When it does not choose a replica in time. FailClose: the tier could not be reached, and the next one of the
    fallback order is tried. FailOpen: the least busy replica takes the request."""
    timeout: Duration = Field(default="500ms", validate_default=True)
    """Longest wait for its choice, from the first byte sent to it, at most 60s."""


_SIGNAL_FIELDS = {
    ScalingSignal.RUNNING_REQUESTS: "running_requests",
    ScalingSignal.WAITING_REQUESTS: "waiting_requests",
    ScalingSignal.KV_CACHE_USAGE: "kv_cache_usage",
}


def _custom_names_its_signal(tier: "InCluster") -> bool:
    field = _SIGNAL_FIELDS.get(tier.autoscaling.signal)
    if tier.engine is not Engine.CUSTOM or field is None:
        return True
    return tier.metrics is not None and getattr(tier.metrics.names, field) is not None


def _llama_cpp_names_its_cache(tier: "InCluster") -> bool:
    if tier.engine is not Engine.LLAMA_CPP or tier.autoscaling.signal is not ScalingSignal.KV_CACHE_USAGE:
        return True
    return tier.metrics is not None and tier.metrics.names.kv_cache_usage is not None


class InCluster(ApiModel):
    """An engine that Tierwise runs as a Deployment with Service, autoscaler and disruption budget."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.engine != 'Custom' || has(self.port)",
            "port is required with engine Custom: write the port that the engine listens on",
            lambda t: t.engine is not Engine.CUSTOM or t.port is not None,
            "port",
        ),
        Rule(
            "self.engine != 'Custom' || has(self.health)",
            "health is required with engine Custom: write the path that answers 200 when the engine can take "
            "requests, such as "
            "health: {path: /health}",
            lambda t: t.engine is not Engine.CUSTOM or t.health is not None,
            "health",
        ),
        Rule(
            "self.engine != 'Custom' || self.autoscaling.signal == 'CPU' || (has(self.metrics) && "
            "has(self.metrics.names) && ("
            "self.autoscaling.signal == 'RunningRequests' ? has(self.metrics.names.runningRequests) : "
            "self.autoscaling.signal == 'WaitingRequests' ? has(self.metrics.names.waitingRequests) : "
            "has(self.metrics.names.kvCacheUsage)))",
            "engine Custom has no metric for autoscaling.signal: name it in metrics.names (runningRequests, "
            "waitingRequests or kvCacheUsage), "
            "or use autoscaling.signal: CPU",
            _custom_names_its_signal,
            "metrics",
        ),
        Rule(
            "self.engine != 'LlamaCpp' || self.autoscaling.signal != 'KVCacheUsage' || (has(self.metrics) && "
            "has(self.metrics.names) && has(self.metrics.names.kvCacheUsage))",
            "engine LlamaCpp has no metric for autoscaling.signal KVCacheUsage: use RunningRequests or "
            "WaitingRequests, or name a metric of your own in metrics.names.kvCacheUsage",
            _llama_cpp_names_its_cache,
            "metrics",
        ),
    )

    engine: Engine = Engine.VLLM
    """Engine: VLLM, SGLang or LlamaCpp, whose command line, port, probes and metric names are known; or Custom,
    which states them."""
    image: Image
    """Container image of the engine, with tag or digest, such as "vllm/vllm-openai:v0.24.0"."""
    model_source: UpstreamModel | None = None
    """What the engine loads: a repository or a path, such as "Qwen/Qwen3-8B". When absent: spec.model."""
    command: Annotated[
        tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=64, json_schema_extra=ATOMIC)
    ] = ()
    """Command of the container. When empty: the engine's own."""
    args: Annotated[
        tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=64, json_schema_extra=ATOMIC)
    ] = ()
    """Arguments after those of the engine's preset, such as "--max-model-len=16384"."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(max_length=64, json_schema_extra=list_map("name")),
        unique("env names a variable twice: keep one", lambda e: e.name),
    ] = ()
    """Environment variables of the container, as in a Pod."""
    port: Annotated[Int | None, Field(ge=1, le=65_535)] = None
    """Port that the engine listens on. When absent: the engine's own; required for Custom."""
    resources: Resources = Resources()
    """Compute resources of the container."""
    pod_template: FreeForm = FrozenMap()
    """Strategic-merge overlay on the Pod template, with `metadata` and `spec`, for everything else: node selectors,
    tolerations, volumes."""
    price: ReplicaPrice | None = None
    """Price of a replica. When absent the tier's cost is unknown: the loop takes it for dear, and budgets list it."""
    replicas: Replicas
    """How many replicas there may be."""
    autoscaling: Autoscaling = Autoscaling()
    """How replicas follow load."""
    capacity: ReplicaCapacity | None = None
    """What one replica can serve: assumed until measured."""
    metrics: EngineMetrics | None = None
    """Metrics of the engine. When absent: the engine's preset."""
    health: EngineHealth | None = None
    """Readiness of the engine. When absent: the engine's preset; required for Custom."""
    endpoint_picker_ref: EndpointPicker | None = None
    """Chooses the replica of each request, instead of the gateway: an endpoint picker as the Gateway API Inference
    Extension defines it. It sees the prompts of requests to this tier. Which session goes to which replica then is
    its matter."""
    termination_grace_period_seconds: Annotated[Int, Field(ge=0, le=3600)] = 120
    """Seconds that a replica gets to finish its requests before it is killed."""
