"""The product's own table of models on GPUs and of external providers: cited figures, with what was derived from them.

Sources
- Latency parameters: least-squares fit, per model and GPU, of the operator database that ships with NVIDIA
  `aiconfigurator` 0.12.0 (vLLM 0.24; 0.14 on A100). Median fit error 1.5 to 3 % for these dense models, 14 % for the
  mixture-of-experts model.
- `SLOWDOWN`: latencies measured on H100 in argonne-lcf/LLM-Inference-Bench (commit 4211f5d4) are 1.35 times those of
  the fit, so every time is multiplied by 1.35.
- Prices per GPU-hour, on demand: skypilot-org/skypilot-catalog, catalogs/v7/nebius/vms.csv at 22fd1fea (H100, H200,
  L40S) and catalogs/v8/hyperstack/vms.csv at fdc9d908 (A100), as read in 2026.
- KV cache: 90 % of GPU memory (vLLM's default `gpu_memory_utilization`) less weights and 2 GB a GPU for activations,
  over the bytes of a token from the model's own config (layers x KV heads x head size x 2 x 2 bytes).
- Providers' latency: ray-project/llmperf-leaderboard, README of December 2023 (550 tokens in, 150 out, 5 concurrent,
  Llama-2-70B). Old, but measured and public; prices are of list, in litellm's table (1.110.2).
"""

from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from tierwise.errors import TierwiseError
from tierwise.sim.replica import ReplicaParams

SLOWDOWN = 1.35
"""Measured over fitted engine times; see the module's docstring."""


class UnknownProfileError(TierwiseError):
    """A profile name that the table does not have."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory in GB (1e9 bytes) and price in USD per GPU-hour."""

    memory_gb: float
    usd_per_hour: Decimal
    price_source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one kind of machine.

    Attributes:
        name: `model/machine`, such as `qwen3-8b/l40s`.
        model: name of the model as its publisher spells it.
        gpu: key of `GPUS`.
        gpus: GPUs of one replica (tensor parallel).
        params: the replica model, with `SLOWDOWN` in it.
        source: where the latency parameters are from.
    """

    name: str
    model: str
    gpu: str
    gpus: int
    params: ReplicaParams
    source: str = "aiconfigurator 0.12.0 fit x 1.35 (LLM-Inference-Bench)"

    @property
    def usd_per_replica_hour(self) -> Decimal:
        """Price of one replica, USD per hour."""
        return GPUS[self.gpu].usd_per_hour * self.gpus


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """An external provider, whose latency does not depend on our load.

    Attributes:
        name: `provider/...`.
        ttft_median_seconds, ttft_p95_seconds: of a lognormal time to first token.
        tokens_per_second: speed of one stream after its first token.
        usd_per_million_input, usd_per_million_output: list price, USD per million tokens.
        latency_source, price_source: where the figures are from.
    """

    name: str
    ttft_median_seconds: float
    ttft_p95_seconds: float
    tokens_per_second: float
    usd_per_million_input: Decimal
    usd_per_million_output: Decimal
    latency_source: str
    price_source: str


GPUS: MappingProxyType[str, Gpu] = MappingProxyType(
    {
        "a100": Gpu(80, Decimal("1.35"), "hyperstack A100-80G-PCIe, skypilot-catalog fdc9d908"),
        "h100": Gpu(80, Decimal("2.95"), "nebius H100 SXM, skypilot-catalog 22fd1fea"),
        "h200": Gpu(141, Decimal("3.50"), "nebius H200 SXM, skypilot-catalog 22fd1fea"),
        "l40s": Gpu(48, Decimal("1.5484"), "nebius L40S with 8 vCPU, skypilot-catalog 22fd1fea"),
    }
)


def _kv_tokens(gpu: str, gpus: int, weights_gb: float, bytes_per_token: int) -> int:
    free_gb = GPUS[gpu].memory_gb * gpus * 0.9 - weights_gb - 2.0 * gpus
    return int(free_gb * 1e9 / bytes_per_token)


# Weights in GB and KV-cache bytes per token, from the models' cards and config.json.
_MODELS: dict[str, tuple[str, float, int]] = {
    "qwen3-8b": ("Qwen/Qwen3-8B", 16.4, 36 * 8 * 128 * 4),
    "qwen3-32b": ("Qwen/Qwen3-32B", 65.5, 64 * 8 * 128 * 4),
    "qwen3-235b-a22b": ("Qwen/Qwen3-235B-A22B", 470.0, 94 * 4 * 128 * 4),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 16.1, 32 * 8 * 128 * 4),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B-Instruct", 141.2, 80 * 8 * 128 * 4),
}

# Model, GPU, GPUs, then a, b, g, p0, p1, p2 in ms as fitted (before SLOWDOWN). The first of a model is its default.
_FITS: tuple[tuple[str, str, int, tuple[float, float, float, float, float, float]], ...] = (
    ("qwen3-8b", "l40s", 1, (22.4188, 0.0326, 0.2217, 8.0598, 67.7917, 2.4782)),
    ("qwen3-8b", "a100", 1, (11.7047, 0.0291, 0.0951, 8.9354, 54.7934, 1.6829)),
    ("qwen3-8b", "h100", 1, (6.5487, 0.0102, 0.0489, 3.7735, 19.5626, 0.5933)),
    ("qwen3-8b", "h200", 1, (5.0697, 0.0103, 0.0349, 2.8087, 19.5972, 0.5783)),
    ("qwen3-32b", "h100", 2, (13.5469, 0.0244, 0.0448, 6.8591, 49.2202, 1.0143)),
    ("qwen3-32b", "a100", 2, (24.8748, 0.0817, 0.0816, 20.0605, 124.8425, 3.1228)),
    ("qwen3-235b-a22b", "h200", 8, (9.1736, 0.0899, 0.0398, 27.2804, 22.7224, 0.2591)),
    ("llama-3.1-8b", "l40s", 1, (22.0994, 0.0314, 0.1971, 6.7560, 67.6407, 2.2799)),
    ("llama-3.1-8b", "h100", 1, (6.3604, 0.0097, 0.0434, 2.6695, 19.7550, 0.5384)),
    ("llama-3.1-70b", "h100", 4, (15.1510, 0.0309, 0.0285, 7.0897, 60.8708, 0.7808)),
    ("llama-3.1-70b", "a100", 4, (27.7972, 0.0955, 0.0562, 19.9680, 151.2303, 1.5926)),
    ("llama-3.1-70b", "h200", 2, (20.9994, 0.0360, 0.0342, 2.9299, 106.5930, 1.4081)),
)


def _build() -> dict[str, Profile]:
    profiles = {}
    for slug, gpu, gpus, fit in _FITS:
        model, weights_gb, bytes_per_token = _MODELS[slug]
        name = f"{slug}/{gpu if gpus == 1 else f'{gpus}x{gpu}'}"
        params = ReplicaParams(*fit, kv_tokens=_kv_tokens(gpu, gpus, weights_gb, bytes_per_token)).scaled(SLOWDOWN)
        profiles[name] = Profile(name=name, model=model, gpu=gpu, gpus=gpus, params=params)
    return profiles


PROFILES: MappingProxyType[str, Profile] = MappingProxyType(_build())

_LLMPERF = "llmperf-leaderboard, December 2023, {}, Llama-2-70B"
_PRICES = "list price of {} in litellm 1.110.2"

PROVIDERS: MappingProxyType[str, ProviderProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            ProviderProfile(
                name="provider/claude-sonnet-4-5",
                ttft_median_seconds=0.63,
                ttft_p95_seconds=0.77,
                tokens_per_second=65.0,
                usd_per_million_input=Decimal(3),
                usd_per_million_output=Decimal(15),
                latency_source=_LLMPERF.format("together"),
                price_source=_PRICES.format("claude-sonnet-4-5"),
            ),
            ProviderProfile(
                name="provider/gpt-5-mini",
                ttft_median_seconds=0.51,
                ttft_p95_seconds=0.79,
                tokens_per_second=40.0,
                usd_per_million_input=Decimal("0.25"),
                usd_per_million_output=Decimal(2),
                latency_source=_LLMPERF.format("fireworks"),
                price_source=_PRICES.format("gpt-5-mini"),
            ),
            ProviderProfile(
                name="provider/gpt-5",
                ttft_median_seconds=0.39,
                ttft_p95_seconds=0.54,
                tokens_per_second=21.0,
                usd_per_million_input=Decimal("1.25"),
                usd_per_million_output=Decimal(10),
                latency_source=_LLMPERF.format("bedrock"),
                price_source=_PRICES.format("gpt-5"),
            ),
        )
    }
)

DEFAULT_PROFILE = "qwen3-8b/l40s"
DEFAULT_PROVIDER = "provider/claude-sonnet-4-5"


def profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        UnknownProfileError: with the names there are.
    """
    found = PROFILES.get(name.lower())
    if found is None:
        raise UnknownProfileError(f"no profile {name!r}; there are {', '.join(sorted(PROFILES))}")
    return found


def provider_profile(name: str) -> ProviderProfile:
    """The provider of this name.

    Raises:
        UnknownProfileError: with the names there are.
    """
    found = PROVIDERS.get(name.lower())
    if found is None:
        raise UnknownProfileError(f"no provider profile {name!r}; there are {', '.join(sorted(PROVIDERS))}")
    return found


def profile_for_model(model: str, tensor_parallel: int = 1) -> Profile | None:
    """The profile that fits a served model's name best: same model, same number of GPUs if there is one; else None."""
    base = model.rsplit("/", maxsplit=1)[-1].lower()
    candidates = [p for p in PROFILES.values() if base.startswith(p.name.split("/", maxsplit=1)[0])]
    exact = [p for p in candidates if p.gpus == tensor_parallel]
    fitting = exact or candidates
    return fitting[0] if fitting else None
