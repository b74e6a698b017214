"""How each engine is started: arguments, environment, user. Sources are named where a figure or a flag comes from."""

from typing import Any

from tierwise.api.in_cluster import Engine, EnvVar, InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.core import engines

# Envoy sees an EndpointSlice change within milliseconds; other clients and slow kubelets need longer. New requests stop
# first, then the engine is told to stop.
DRAIN_SECONDS = 10
# Between the end of an engine's own drain and SIGKILL, for it to free its accelerators.
_MARGIN_SECONDS = 5

HOME = "/home/tierwise"
# Writable places that engines expect though the image belongs to another user: caches of weights and kernels, locks,
# shared memory between their processes.
SCRATCH = (("home", HOME, None), ("shm", "/dev/shm", "Memory"), ("tmp", "/tmp", None))  # noqa: S108 - in the Pod

# The vllm-openai image ships this user; any other that is not root does for the rest.
_USERS = {Engine.VLLM: 2000}
_ANY_USER = 1000


def user(spec: InCluster) -> int:
    """Numeric user and group that the engine runs as."""
    return _USERS.get(spec.engine, _ANY_USER)


def drain_seconds(spec: InCluster) -> int:
    """Pause between leaving the endpoints and SIGTERM, within the grace period; 0 when that is too short for one."""
    return min(DRAIN_SECONDS, spec.termination_grace_period_seconds // 2)


def arguments(tier: ModelTier, spec: InCluster) -> list[str]:
    """Arguments after the official image's entry point, then the tier's; with a command of the user's only the latter.

    Sources: vLLM `vllm serve --help` (image entry point `vllm serve`, model first; --shutdown-timeout since 0.18:
    without it SIGTERM aborts what runs), SGLang `python3 -m sglang.launch_server --help` (its image has no own entry),
    llama.cpp tools/server/README.md (image entry point `llama-server`).
    """
    return [*(() if spec.command else _preset(tier, spec)), *spec.args]


def environment(spec: InCluster) -> list[dict[str, Any]]:
    """The preset's variables, in place of each what the tier states, then the tier's others in its own order.

    HOME because the image's user may have none that is writable. USER because PyTorch asks for the user's name while it
    is imported, and fails where /etc/passwd does not know the number.
    """
    stated = {variable.name: _variable(variable) for variable in spec.env}
    preset = {"HOME": HOME, "USER": "tierwise"}
    return [
        *({"name": name, "value": value} for name, value in sorted(preset.items()) if name not in stated),
        *stated.values(),
    ]


def _preset(tier: ModelTier, spec: InCluster) -> list[str]:
    source = spec.model_source or tier.spec.model
    served, port = tier.spec.model, str(engines.port(spec))
    match spec.engine:
        case Engine.VLLM:
            drain = spec.termination_grace_period_seconds - drain_seconds(spec) - _MARGIN_SECONDS
            return [
                source,
                f"--served-model-name={served}",
                "--host=0.0.0.0",
                f"--port={port}",
                f"--shutdown-timeout={max(0, drain)}",
            ]
        case Engine.SGLANG:
            return [
                "python3",
                "-m",
                "sglang.launch_server",
                f"--model-path={source}",
                f"--served-model-name={served}",
                "--host=0.0.0.0",
                f"--port={port}",
                "--enable-metrics",
            ]
        case Engine.LLAMA_CPP:
            return [
                *_llama_source(spec),
                "--alias",
                served,
                "--host",
                "0.0.0.0",  # noqa: S104 - a Pod's server is reached from other Pods
                "--port",
                port,
                "--metrics",
            ]
        case _:
            return []


def _llama_source(spec: InCluster) -> list[str]:
    """A file in the Pod, or a repository on Hugging Face; with neither, the tier's own arguments say what is loaded."""
    if spec.model_source is None:
        return []
    return ["--model" if spec.model_source.startswith("/") else "--hf-repo", spec.model_source]


def _variable(variable: EnvVar) -> dict[str, Any]:
    if variable.value_from is not None:
        return {"name": variable.name, "valueFrom": variable.value_from.thaw()}
    return {"name": variable.name, "value": variable.value or ""}
