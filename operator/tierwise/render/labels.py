"""Names and labels of what Tierwise owns."""

from typing import Any

from tierwise.api.meta import API_VERSION
from tierwise.api.model_tier import ModelTier

MANAGED_BY = "tierwise"
TIER_LABEL = "tierwise.dev/tier"
COMPONENT_LABEL = "tierwise.dev/component"
RENDERED_ANNOTATION = "tierwise.dev/rendered"


def name_of(tier: ModelTier) -> str:
    """Name of every child: the tier's own, so that `kubectl get` shows what belongs together."""
    return tier.metadata.name


def selector(tier: ModelTier) -> dict[str, str]:
    """Labels that select the tier's Pods. They never change: a Deployment's selector is immutable."""
    return {TIER_LABEL: tier.metadata.name}


def labels(tier: ModelTier) -> dict[str, str]:
    """Labels of every child and Pod of a tier, in the form that Kubernetes recommends."""
    return {
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/instance": tier.metadata.name,
        "app.kubernetes.io/managed-by": MANAGED_BY,
        "app.kubernetes.io/name": "model-tier",
        "app.kubernetes.io/part-of": "tierwise",
        COMPONENT_LABEL: "engine",
        TIER_LABEL: tier.metadata.name,
    }


def owner(tier: ModelTier) -> dict[str, Any]:
    """Reference that makes the garbage collector delete a child with its tier."""
    return {
        "apiVersion": API_VERSION,
        "blockOwnerDeletion": True,
        "controller": True,
        "kind": "ModelTier",
        "name": tier.metadata.name,
        "uid": tier.metadata.uid,
    }


def metadata(tier: ModelTier) -> dict[str, Any]:
    """Metadata of a child."""
    return {
        "labels": labels(tier),
        "name": name_of(tier),
        "namespace": tier.metadata.namespace,
        "ownerReferences": [owner(tier)],
    }
