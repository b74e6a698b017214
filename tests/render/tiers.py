"""Tiers to render, and what of them."""

from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import ReplicaBounds
from tierwise.render.children import children


def tier(name: str = "compact", **in_cluster: Any) -> ModelTier:
    spec = {
        "image": "vllm/vllm-openai:v0.24.0",
        "modelSource": "Qwen/Qwen3-8B",
        "replicas": {"min": 1, "max": 6, "startupSeconds": 120},
        "price": {"perReplicaHour": "1.55"},
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}},
        **in_cluster,
    }
    return ModelTier.parse(
        {
            "apiVersion": "tierwise.dev/v1alpha1",
            "kind": "ModelTier",
            "metadata": {"name": name, "namespace": "legal", "uid": "u-1", "generation": 1},
            "spec": {"model": "qwen3-8b", "inCluster": spec},
        }
    )


def by_kind(model_tier: ModelTier, low: int = 2, high: int = 4) -> dict[str, dict[str, Any]]:
    return {child["kind"]: child for child in children(model_tier, ReplicaBounds(low, high))}


def pod(model_tier: ModelTier) -> dict[str, Any]:
    found: dict[str, Any] = by_kind(model_tier)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(model_tier: ModelTier) -> dict[str, Any]:
    found: dict[str, Any] = pod(model_tier)["containers"][0]
    return found
