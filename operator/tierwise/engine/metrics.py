"""vLLM's metrics, by the names, types, labels and buckets of `vllm/v1/metrics/loggers.py`.

Histograms are our own collector: a decode iteration gives every running sequence the same gap, and prometheus_client
can only observe one value at a time.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from tierwise import __version__

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS = ("stop", "length", "abort")
BLOCK_TOKENS = 16


def token_buckets(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `most`."""
    buckets: list[float] = []
    power = 1
    while power <= most:
        buckets += [mantissa * power for mantissa in (1, 2, 5) if mantissa * power <= most]
        power *= 10
    return tuple(buckets)


class BulkHistogram(Collector):
    """A histogram with one set of labels that takes a value many times at once."""

    def __init__(self, name: str, documentation: str, labels: dict[str, str], buckets: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._label_names, self._label_values = list(labels), list(labels.values())
        self._bounds = list(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Add `value`, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The family as prometheus_client wants it: cumulative counts."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*map(float, self._bounds), float("inf")], self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        family.add_metric(self._label_values, buckets, self._sum)
        yield family


class EngineMetrics:
    """All metrics of one simulated engine, in a registry of its own."""

    def __init__(self, model_name: str, profile_name: str, max_model_len: int, kv_tokens: int) -> None:
        self.registry = CollectorRegistry()
        labels = {"model_name": model_name, "engine": "0"}
        names = list(labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=self.registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=self.registry).labels(**labels)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> BulkHistogram:
            made = BulkHistogram(f"vllm:{name}", text, labels, buckets)
            self.registry.register(made)
            return made

        self.running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self.kv_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.preemptions = counter("num_preemptions", "Cumulative number of preemption from the engine.")
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            [*names, "finished_reason"],
            registry=self.registry,
        )
        self.success = {reason: success.labels(**labels, finished_reason=reason) for reason in FINISH_REASONS}
        sizes = token_buckets(max_model_len)
        self.request_prompt = histogram("request_prompt_tokens", "Number of prefill tokens processed.", sizes)
        self.request_generation = histogram(
            "request_generation_tokens", "Number of generation tokens processed.", sizes
        )
        self.iteration_tokens = histogram(
            "iteration_tokens_total", "Histogram of number of tokens per engine_step.", ITERATION_BUCKETS
        )
        self.ttft = histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", TTFT_BUCKETS
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", INTER_TOKEN_BUCKETS
        )
        # The older name of the same values: vLLM has one or the other, depending on its version.
        self.time_per_output = histogram(
            "time_per_output_token_seconds", "Histogram of time per output token in seconds.", INTER_TOKEN_BUCKETS
        )
        self.e2e = histogram(
            "e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", REQUEST_BUCKETS
        )
        self.queue = histogram(
            "request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            REQUEST_BUCKETS,
        )
        cache = {
            "block_size": str(BLOCK_TOKENS),
            "cache_dtype": "auto",
            "gpu_memory_utilization": "0.9",
            "num_gpu_blocks": str(kv_tokens // BLOCK_TOKENS),
            "engine": "0",
        }
        Gauge(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", list(cache), registry=self.registry
        ).labels(**cache).set(1)
        about = {"profile": profile_name, "model_name": model_name, "version": __version__}
        Gauge(
            "tierwise_engine_simulator_info",
            "This is a simulator: no model runs here, times follow the profile's replica model.",
            list(about),
            registry=self.registry,
        ).labels(**about).set(1)
