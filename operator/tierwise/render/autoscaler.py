"""The autoscaler of an in-cluster tier: a HorizontalPodAutoscaler, or KEDA's ScaledObject, with the loop's bounds."""

from decimal import Decimal
from typing import Any

from tierwise.api.in_cluster import AutoscalingProvider, InCluster, ScalingRules, ScalingSignal
from tierwise.api.model_tier import ModelTier
from tierwise.core import engines
from tierwise.core.plan import Manifest, ReplicaBounds
from tierwise.render import labels, merge

DEFAULT_PROMETHEUS = "http://prometheus.monitoring.svc.cluster.local:9090"

# Up at once, by doubling or by four: a late replica costs the objective. Down slowly, after the recommendation stayed
# low for two minutes: a replica that is stopped and started again is paid for twice.
_BEHAVIOR: dict[str, Any] = {
    "scaleDown": {
        "policies": [{"periodSeconds": 60, "type": "Percent", "value": 50}],
        "selectPolicy": "Max",
        "stabilizationWindowSeconds": 120,
    },
    "scaleUp": {
        "policies": [
            {"periodSeconds": 15, "type": "Percent", "value": 100},
            {"periodSeconds": 15, "type": "Pods", "value": 4},
        ],
        "selectPolicy": "Max",
        "stabilizationWindowSeconds": 0,
    },
}


def autoscaler(
    tier: ModelTier, spec: InCluster, bounds: ReplicaBounds, prometheus_url: str = DEFAULT_PROMETHEUS
) -> Manifest:
    """The object that moves replicas between the loop's bounds.

    Its minimum is at least 1: the operator itself takes the steps between 0 and 1, and an autoscaler leaves alone a
    Deployment that has 0 replicas.
    """
    low, high = max(1, bounds.min), max(1, bounds.min, bounds.max)
    if spec.autoscaling.provider is AutoscalingProvider.KEDA:
        return _scaled_object(tier, spec, bounds, prometheus_url)
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": labels.metadata(tier),
        "spec": {
            "behavior": _behavior(spec),
            "maxReplicas": high,
            "metrics": [_metric(spec, bounds)],
            "minReplicas": low,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": labels.name_of(tier)},
        },
    }


def _target(spec: InCluster, bounds: ReplicaBounds) -> Decimal:
    """The user's, else what the loop measured to be a full replica, else the preset's."""
    if spec.autoscaling.target is None and bounds.running_target is not None:
        return Decimal(bounds.running_target)
    return engines.scaling_target(spec)


def _metric(spec: InCluster, bounds: ReplicaBounds) -> dict[str, Any]:
    target = _target(spec, bounds)
    signal = spec.autoscaling.signal
    if signal is ScalingSignal.CPU:
        return {
            "resource": {"name": "cpu", "target": {"averageUtilization": int(target), "type": "Utilization"}},
            "type": "Resource",
        }
    return {
        "pods": {
            "metric": {"name": engines.pod_metric(engines.signal_metric(spec))},
            "target": {"averageValue": _quantity(target), "type": "AverageValue"},
        },
        "type": "Pods",
    }


def _quantity(value: Decimal) -> str:
    """Kubernetes' canonical form: whole numbers plain, fractions in milli."""
    return str(int(value)) if value == value.to_integral_value() else f"{int((value * 1000).to_integral_value())}m"


def _behavior(spec: InCluster) -> dict[str, Any]:
    user = spec.autoscaling.behavior
    if user is None:
        return _BEHAVIOR
    patch = {
        name: _rules(rules)
        for name, rules in (("scaleDown", user.scale_down), ("scaleUp", user.scale_up))
        if rules is not None
    }
    return dict(merge.overlay(_BEHAVIOR, patch))


def _rules(rules: ScalingRules) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if rules.stabilization_window_seconds is not None:
        out["stabilizationWindowSeconds"] = rules.stabilization_window_seconds
    if rules.select_policy is not None:
        out["selectPolicy"] = rules.select_policy.value
    if rules.policies:
        out["policies"] = [
            {"periodSeconds": p.period_seconds, "type": p.type.value, "value": p.value} for p in rules.policies
        ]
    return out


def _scaled_object(tier: ModelTier, spec: InCluster, bounds: ReplicaBounds, prometheus_url: str) -> Manifest:
    """KEDA makes the HorizontalPodAutoscaler; the operator owns the ScaledObject alone, so no two objects disagree.

    KEDA raises a Deployment with 0 replicas to its minimum at once: it is paused while the tier is at zero on purpose.
    """
    name, namespace = labels.name_of(tier), tier.metadata.namespace
    if spec.autoscaling.signal is ScalingSignal.CPU:
        trigger: dict[str, Any] = {
            "metadata": {"value": str(int(engines.scaling_target(spec)))},
            "metricType": "Utilization",
            "type": "cpu",
        }
    else:
        metric = engines.signal_metric(spec)
        trigger = {
            "metadata": {
                "query": f'sum({{__name__="{metric}",namespace="{namespace}",tierwise_tier="{name}"}})',
                "serverAddress": prometheus_url,
                "threshold": format(_target(spec, bounds), "f"),
            },
            "metricType": "AverageValue",
            "type": "prometheus",
        }
    metadata = labels.metadata(tier)
    if bounds.max == 0:
        metadata["annotations"] = {"autoscaling.keda.sh/paused-replicas": "0"}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(spec)}},
            "maxReplicaCount": max(1, bounds.min, bounds.max),
            "minReplicaCount": max(1, bounds.min),
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "triggers": [trigger],
        },
    }
