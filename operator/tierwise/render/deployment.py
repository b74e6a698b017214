"""The Deployment of an in-cluster tier."""

from typing import Any

from tierwise.api.in_cluster import Engine, EnvVar, InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.core import engines
from tierwise.core.plan import Manifest
from tierwise.render import labels, merge

CONTAINER = "engine"
# Envoy sees an EndpointSlice change within milliseconds; other clients and slow kubelets need longer. New requests stop
# first, then the engine is told to stop.
DRAIN_SECONDS = 10
_PROBE_PERIOD_SECONDS = 5
# Loading weights varies with disks and networks: three times the stated start-up, and never under five minutes.
_STARTUP_MARGIN = 3
_STARTUP_MIN_SECONDS = 300
# Writable places that engines expect, since the image may be owned by another user: caches, locks, shared memory.
_SCRATCH = (("cache", "/.cache", None), ("shm", "/dev/shm", "Memory"), ("tmp", "/tmp", None))  # noqa: S108 - in the Pod


def deployment(tier: ModelTier, spec: InCluster) -> Manifest:
    """The tier's Deployment, without `spec.replicas`: those are the autoscaler's."""
    template: dict[str, Any] = {"metadata": _pod_metadata(tier, spec), "spec": _pod_spec(tier, spec)}
    template = merge.overlay(template, spec.pod_template.thaw())
    # The selector must go on matching, whatever the overlay says.
    template["metadata"]["labels"] |= labels.selector(tier)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": labels.metadata(tier),
        "spec": {
            "progressDeadlineSeconds": max(600, _startup_budget(spec) + 60),
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": labels.selector(tier)},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}, "type": "RollingUpdate"},
            "template": template,
        },
    }


def _pod_metadata(tier: ModelTier, spec: InCluster) -> dict[str, Any]:
    return {
        "annotations": {
            "prometheus.io/path": engines.metrics_path(spec),
            "prometheus.io/port": str(engines.port(spec)),
            "prometheus.io/scrape": "true",
        },
        "labels": labels.labels(tier),
    }


def _pod_spec(tier: ModelTier, spec: InCluster) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "containers": [_container(tier, spec)],
        "securityContext": {
            "fsGroup": 1000,
            "runAsGroup": 1000,
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "topologySpreadConstraints": [
            {
                "labelSelector": {"matchLabels": labels.selector(tier)},
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "volumes": [
            {"emptyDir": {"medium": medium} if medium else {}, "name": name} for name, _path, medium in _SCRATCH
        ],
    }


def _container(tier: ModelTier, spec: InCluster) -> dict[str, Any]:
    container: dict[str, Any] = {
        "args": [*_preset_args(tier, spec), *spec.args],
        "env": _env(spec),
        "image": spec.image,
        "lifecycle": {"preStop": {"sleep": {"seconds": _drain_seconds(spec)}}},
        "livenessProbe": {
            **_http_get(spec),
            # Gentle: a busy engine answers late, and a restart costs minutes of start-up.
            "failureThreshold": 6,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
        },
        "name": CONTAINER,
        "ports": [{"containerPort": engines.port(spec), "name": "http", "protocol": "TCP"}],
        "readinessProbe": {
            **_http_get(spec),
            "failureThreshold": 2,
            "periodSeconds": _PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 3,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
        "startupProbe": {
            **_http_get(spec),
            # Often, so that a replica that is ready takes requests soon: it has been paid for since it started.
            "failureThreshold": _startup_budget(spec),
            "periodSeconds": 1,
            "timeoutSeconds": 3,
        },
        "volumeMounts": [{"mountPath": path, "name": name} for name, path, _medium in _SCRATCH],
    }
    if spec.command:
        container["command"] = list(spec.command)
    if resources := _resources(spec):
        container["resources"] = resources
    return container


def _preset_args(tier: ModelTier, spec: InCluster) -> list[str]:
    """Arguments after the official image's entry point; with a command of the user's there is no preset.

    Sources: vLLM `vllm serve --help` (image entry point `vllm serve`), SGLang `python -m sglang.launch_server --help`,
    llama.cpp tools/server/README.md (image entry point `llama-server`).
    """
    source = spec.model_source or tier.spec.model
    served, port = tier.spec.model, str(engines.port(spec))
    if spec.command:
        return []
    match spec.engine:
        case Engine.VLLM:
            return [f"--model={source}", f"--served-model-name={served}", "--host=0.0.0.0", f"--port={port}"]
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
                *(["--hf-repo", source] if spec.model_source else []),
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


def _env(spec: InCluster) -> list[dict[str, Any]]:
    preset = {"HOME": "/tmp"}  # noqa: S108 - a writable home in the Pod, for an image whose user has none
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(preset.items())]
    return list(merge.overlay(variables, [_variable(v) for v in spec.env], "env"))


def _variable(variable: EnvVar) -> dict[str, Any]:
    if variable.value_from is not None:
        return {"name": variable.name, "valueFrom": variable.value_from.thaw()}
    return {"name": variable.name, "value": variable.value or ""}


def _resources(spec: InCluster) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    for field in ("limits", "requests"):
        quantities = getattr(spec.resources, field)
        if quantities:
            resources[field] = {name: str(value) for name, value in sorted(quantities.items())}
    return resources


def _http_get(spec: InCluster) -> dict[str, Any]:
    return {"httpGet": {"path": engines.health_path(spec), "port": "http", "scheme": "HTTP"}}


def _startup_budget(spec: InCluster) -> int:
    """Seconds that a replica may take to start, also the failure threshold of a probe that runs each second."""
    return max(_STARTUP_MIN_SECONDS, _STARTUP_MARGIN * spec.replicas.startup_seconds)


def _drain_seconds(spec: InCluster) -> int:
    """The pause before SIGTERM, within the grace period."""
    return max(1, min(DRAIN_SECONDS, spec.termination_grace_period_seconds // 2))
