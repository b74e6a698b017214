"""How the simulator is started: a real engine's command line, and the simulator's own settings in the environment.

A Deployment's manifest for vLLM or SGLang must start it unchanged. So the arguments that matter are read and all others
are accepted and named in the log; what only a simulator needs comes from `TIERWISE_SIM_*`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tierwise.engine.faults import Faults
from tierwise.errors import TierwiseError
from tierwise.sim.profiles import (
    DEFAULT_PROFILE,
    DEFAULT_PROVIDER,
    Profile,
    ProviderProfile,
    profile,
    profile_for_model,
    provider_profile,
)

ANY_HOST = "0.0.0.0"  # noqa: S104 - as vLLM: the Pod's address is not known beforehand


class OptionError(TierwiseError):
    """An argument or setting that can not be used."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that one simulator process needs to know.

    Attributes:
        model: what the weights would be; reported as `root` of the served names.
        served_names: names that a request's `model` may have; the first one answers and labels metrics.
        host, port: where to listen.
        max_model_len: tokens of prompt and output together.
        max_num_seqs: sequences that run at once.
        max_batched_tokens: prompt tokens of one prefill.
        api_keys: bearer keys, one of which is required; empty: none is.
        profile: replica model, or a provider's latency.
        base_path: in front of `/chat/completions`.
        rate_limit_rpm: requests per minute before 429; None: no limit.
        tls_certificate, tls_key: PEM files.
        admin_port: a second port for faults and counts; None: none.
        startup_seconds: until `/health` turns 200 and requests are served.
        seed: of output lengths, faults and provider latency.
        tokens_per_chunk: generated tokens in one event of a stream.
        wake_seconds: least time between two writes of one stream.
        drain_accept_seconds: after SIGTERM, how long new requests are still served.
        drain_limit_seconds: after SIGTERM, how long running requests may take; vLLM's `--shutdown-timeout`.
        request_log: `-` for standard output, `off`, or a file.
        faults: at start.
        ignored: arguments that a real engine knows and this one does not.
    """

    model: str
    served_names: tuple[str, ...]
    profile: Profile | ProviderProfile
    host: str = ANY_HOST
    port: int = 8000
    max_model_len: int = 32768
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    api_keys: tuple[str, ...] = ()
    base_path: str = "/v1"
    rate_limit_rpm: float | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    admin_port: int | None = None
    startup_seconds: float = 0.0
    seed: int = 0
    tokens_per_chunk: int = 1
    wake_seconds: float = 0.04
    drain_accept_seconds: float = 5.0
    drain_limit_seconds: float = 600.0
    request_log: str = "-"
    faults: Faults = field(default_factory=Faults)
    ignored: tuple[str, ...] = ()

    @property
    def is_provider(self) -> bool:
        """Whether this stands for an external provider."""
        return isinstance(self.profile, ProviderProfile)


# Name -> how many values: "1", or "+" for all that follow. Spelled with dashes; underscores are accepted as vLLM does.
_KNOWN: dict[str, str] = {
    "model": "1",
    "model-path": "1",
    "served-model-name": "+",
    "host": "1",
    "port": "1",
    "max-model-len": "1",
    "context-length": "1",
    "max-num-seqs": "1",
    "max-running-requests": "1",
    "max-num-batched-tokens": "1",
    "tensor-parallel-size": "1",
    "tp-size": "1",
    "tp": "1",
    "api-key": "+",
    "base-path": "1",
    "rate-limit-rpm": "1",
    "tls-cert": "1",
    "ssl-certfile": "1",
    "tls-key": "1",
    "ssl-keyfile": "1",
    "admin-port": "1",
    "shutdown-timeout": "1",
    "provider": "0",
}
_ENTRY_MODULES = frozenset({"sglang.launch_server", "vllm.entrypoints.openai.api_server"})
_SHORT = {"-tp": "tensor-parallel-size", "-m": "model"}


def _split(arguments: Sequence[str]) -> tuple[str | None, dict[str, list[str]], list[str]]:
    """Positional model, known options, and everything else as it was written."""
    rest = list(arguments)
    # What images without an entry point of their own are told to run.
    if rest[:1] and rest[0].startswith("python") and rest[1:2] == ["-m"] and rest[2:3] and rest[2] in _ENTRY_MODULES:
        rest = rest[3:]
    for word in ("vllm", "serve"):
        if rest[:1] == [word]:
            rest.pop(0)
    model = rest.pop(0) if rest and not rest[0].startswith("-") else None
    known: dict[str, list[str]] = {}
    ignored: list[str] = []
    for raw, values in _groups(rest):
        name = _SHORT.get(raw, raw.lstrip("-").replace("_", "-"))
        arity = _KNOWN.get(name)
        if arity is None:
            ignored.append(" ".join([raw, *values]))
            continue
        if (arity == "0") == bool(values) or (arity == "1" and len(values) != 1):
            wanted = {"0": "no value", "1": "one value", "+": "at least one value"}[arity]
            raise OptionError(f"{raw} takes {wanted}, not {values or 'none'}")
        known[name] = values
    return model, known, ignored


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the values that follow it, until the next option."""
    name: str | None = None
    values: list[str] = []
    for word in words:
        if word.startswith("-") and not _is_number(word):
            if name is not None:
                yield name, values
            name, separator, value = word.partition("=")
            values = [value] if separator else []
        elif name is None:
            raise OptionError(f"{word!r} is no option; the model comes first, then options")
        else:
            values.append(word)
    if name is not None:
        yield name, values


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def human_tokens(text: str) -> int:
    """A number of tokens as vLLM reads it: `32768`, `32k` (thousands) or `32K` (times 1024).

    Raises:
        OptionError: when it is none of these.
    """
    factors = {"k": 1000, "m": 1000**2, "K": 1024, "M": 1024**2}
    factor = factors.get(text[-1:], 1)
    digits = text[:-1] if factor != 1 else text
    if not _is_number(digits) or not math.isfinite(float(digits)) or float(digits) * factor < 1:
        raise OptionError(f"{text!r} is no number of tokens; write one such as 32768, 32k or 32K")
    return int(float(digits) * factor)


def _number(name: str, text: str, least: float, most: float = math.inf) -> float:
    if not _is_number(text) or not least <= float(text) <= most:
        raise OptionError(
            f"{name} is {text!r}; write a number of at least {least:g}"
            + (f" and at most {most:g}" if math.isfinite(most) else "")
        )
    return float(text)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Options from a command line and the environment.

    Raises:
        OptionError: naming the argument or variable and what it may be.
        UnknownProfileError: for a profile that does not exist.
    """
    positional, known, ignored = _split(arguments)

    def one(*names: str) -> str | None:
        return next((known[name][0] for name in names if name in known), None)

    def whole(default: int, least: int, *names: str, most: float = math.inf) -> int:
        text = one(*names)
        return default if text is None else int(_number(f"--{names[0]}", text, least, most))

    def setting(name: str, default: float, least: float, most: float = math.inf) -> float:
        text = environment.get(f"TIERWISE_SIM_{name}")
        return default if not text else _number(f"TIERWISE_SIM_{name}", text, least, most)

    model = positional or one("model", "model-path")
    wanted = environment.get("TIERWISE_SIM_PROFILE") or None
    is_provider = "provider" in known or (wanted or "").lower().startswith("provider/")
    gpus = whole(1, 1, "tensor-parallel-size", "tp-size", "tp")
    chosen: Profile | ProviderProfile
    if is_provider:
        chosen = provider_profile(wanted or DEFAULT_PROVIDER)
        model = model or chosen.name.partition("/")[2]
    else:
        chosen = profile(wanted) if wanted else profile_for_model(model or "", gpus) or profile(DEFAULT_PROFILE)
        model = model or chosen.model
    api_keys = tuple(known.get("api-key", ())) or tuple(
        key for key in environment.get("VLLM_API_KEY", "").split(",") if key
    )
    if is_provider and not api_keys:
        raise OptionError("a provider needs at least one bearer key: --api-key KEY, or VLLM_API_KEY")
    length = one("max-model-len", "context-length")
    admin = one("admin-port") or environment.get("TIERWISE_SIM_ADMIN_PORT") or None
    certificate, key = one("tls-cert", "ssl-certfile"), one("tls-key", "ssl-keyfile")
    if (certificate is None) != (key is None):
        raise OptionError("--tls-cert and --tls-key go together")
    rpm = one("rate-limit-rpm")
    return Options(
        model=model,
        served_names=tuple(known.get("served-model-name", ())) or (model,),
        profile=chosen,
        host=one("host") or ANY_HOST,
        port=whole(8000, 0, "port", most=65535),
        max_model_len=human_tokens(length) if length else 32768,
        max_num_seqs=whole(256, 1, "max-num-seqs", "max-running-requests"),
        max_batched_tokens=whole(8192, 1, "max-num-batched-tokens"),
        api_keys=api_keys,
        base_path="/" + (one("base-path") or "/v1").strip("/"),
        rate_limit_rpm=None if rpm is None else _number("--rate-limit-rpm", rpm, 1),
        tls_certificate=certificate,
        tls_key=key,
        admin_port=None if admin is None else int(_number("--admin-port", admin, 0, 65535)),
        startup_seconds=setting("STARTUP_SECONDS", 0.0, 0.0),
        seed=int(setting("SEED", 0, 0)),
        tokens_per_chunk=int(setting("TOKENS_PER_CHUNK", 1, 1)),
        wake_seconds=setting("WAKE_MS", 40.0, 20.0) / 1e3,
        drain_accept_seconds=setting("DRAIN_ACCEPT_SECONDS", 5.0, 0.0),
        drain_limit_seconds=whole(600, 0, "shutdown-timeout"),
        request_log=environment.get("TIERWISE_SIM_REQUEST_LOG") or "-",
        faults=Faults.parse(environment.get("TIERWISE_SIM_FAULTS", "")),
        ignored=tuple(ignored),
    )
