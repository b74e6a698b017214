"""The Deployment of an in-cluster tier."""

from typing import Any

from tierwise.api.in_cluster import InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.core import engines
from tierwise.core.plan import Manifest
from tierwise.render import engines as presets
from tierwise.render import labels, merge

CONTAINER = "engine"
_PROBE_PERIOD_SECONDS = 5
# Loading weights varies with disks and networks: three times the stated start-up, and never under five minutes.
_STARTUP_MARGIN = 3
_STARTUP_MIN_SECONDS = 300


def deployment(tier: ModelTier, spec: InCluster) -> Manifest:
    """The tier's Deployment, without `spec.replicas`: those are the autoscaler's.

    A roll-out starts one new replica before an old one goes, so it needs room for one more.
    """
    template: dict[str, Any] = {"metadata": _pod_metadata(tier, spec), "spec": _pod_spec(tier, spec)}
    # The selector must go on matching, whatever the overlay says. An overlay of the wrong shape stays as it is: the API
    # server refuses it with better words than ours.
    template = merge.overlay(template, spec.pod_template.thaw())
    template = merge.overlay(template, {"metadata": {"labels": labels.selector(tier)}})
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
    user = presets.user(spec)
    return {
        "automountServiceAccountToken": False,
        "containers": [_container(tier, spec)],
        # A Service named `vllm` would set VLLM_PORT to an address, which vLLM then takes for its port.
        "enableServiceLinks": False,
        "securityContext": {
            "fsGroup": user,
            # Walking through a volume full of weights at each start takes minutes.
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsGroup": user,
            "runAsNonRoot": True,
            "runAsUser": user,
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
            {"emptyDir": {"medium": medium} if medium else {}, "name": name} for name, _path, medium in presets.SCRATCH
        ],
    }


def _container(tier: ModelTier, spec: InCluster) -> dict[str, Any]:
    container: dict[str, Any] = {
        "args": presets.arguments(tier, spec),
        "env": presets.environment(spec),
        "image": spec.image,
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
        # The root file system stays writable: engines compile kernels beside their own packages.
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
        "volumeMounts": [{"mountPath": path, "name": name} for name, path, _medium in presets.SCRATCH],
    }
    if pause := presets.drain_seconds(spec):
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": pause}}}
    if spec.command:
        container["command"] = list(spec.command)
    if resources := _resources(spec):
        container["resources"] = resources
    return container


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
