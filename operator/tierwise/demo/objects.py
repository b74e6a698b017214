"""The objects of a run: the examples as they are, a provider to talk to, and the control arm. Pure."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.demo import terms as agreed
from tierwise.demo.errors import DemoError
from tierwise.demo.terms import Terms

AUTO = "auto"
ALL_LARGE = "all-large"
AUTO_NAMESPACE = "demo"
ALL_LARGE_NAMESPACE = "demo-all-large"
PROVIDER_NAMESPACE = "provider"
PROVIDER_LABEL = "tierwise.dev/demo"

Manifest = dict[str, Any]


def in_namespace(documents: Iterable[Mapping[str, Any]], namespace: str) -> list[Manifest]:
    """Parsed manifests as kubectl's `-n` would place them: what names a namespace keeps it."""
    placed = []
    for document in documents:
        entry = copy.deepcopy(dict(document))
        if entry.get("kind") != "Namespace":
            entry.setdefault("metadata", {}).setdefault("namespace", namespace)
        placed.append(entry)
    return placed


def terms_of(documents: Iterable[Mapping[str, Any]], namespace: str = AUTO_NAMESPACE) -> Terms:
    """Prices, scores, objectives and floors that the manifests state.

    Raises:
        DemoError: when they hold no policy with a reference tier.
        InvalidObject: when an object does not parse.
    """
    tiers, policies = [], []
    for entry in in_namespace(documents, namespace):
        if entry.get("kind") == "ModelTier":
            tiers.append(ModelTier.parse(entry))
        elif entry.get("kind") == "RoutingPolicy":
            policies.append(RoutingPolicy.parse(entry))
    if not policies:
        raise DemoError("the examples hold no RoutingPolicy")
    try:
        return agreed.read(tiers, policies[0])
    except ValueError as error:
        raise DemoError(str(error)) from error


def namespace(name: str) -> Manifest:
    """A namespace with restricted Pod security."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }


def all_large(documents: Iterable[Mapping[str, Any]], terms: Terms, target: float) -> list[Manifest]:
    """The control arm: the same policy in Manual mode with everything on its reference tier, and that tier alone.

    The reference tier keeps price and bounds, and is scaled with its load by an HPA: it is not left at its peak.

    Args:
        documents: the examples.
        terms: of them.
        target: running requests per replica, for that HPA.
    """
    made = [namespace(ALL_LARGE_NAMESPACE)]
    for entry in in_namespace(documents, ALL_LARGE_NAMESPACE):
        metadata = entry["metadata"]
        if entry.get("kind") == "ModelTier" and metadata["name"] == terms.reference:
            # Alone, an autoscaler needs a pause before it goes down; beside the loop, the loop's is enough.
            scaling = entry["spec"]["inCluster"]["autoscaling"]
            scaling["target"] = round(target)
            scaling.setdefault("behavior", {}).setdefault("scaleDown", {})["stabilizationWindowSeconds"] = 15
            made.append(entry)
        elif entry.get("kind") == "RoutingPolicy" and metadata["name"] == terms.policy:
            for routing_class in entry["spec"]["classes"]:
                routing_class["tiers"] = [{"name": terms.reference, "weight": 100}]
                routing_class.pop("fallback", None)
            entry["spec"]["rebalance"] = entry["spec"].get("rebalance", {}) | {"mode": "Manual"}
            made.append(entry)
    return made


def provider(documents: Iterable[Mapping[str, Any]], image: str, profile: str) -> list[Manifest]:
    """A stand-in for the provider that the examples name: an engine simulator in its provider mode, in a Pod.

    Args:
        documents: the examples, for the provider's model and the key that it expects.
        image: that holds `tierwise`.
        profile: the simulator's latency profile.
    """
    entries = list(documents)
    tier = next((entry for entry in entries if "external" in (entry.get("spec") or {})), None)
    if tier is None:
        return []
    reference = tier["spec"]["external"].get("credentialsRef") or {}
    key = next(
        (
            (entry.get("stringData") or {}).get(reference.get("key", "token"))
            for entry in entries
            if entry.get("kind") == "Secret" and entry["metadata"]["name"] == reference.get("name")
        ),
        None,
    )
    if key is None:
        raise DemoError("the examples hold no Secret with the provider's key")
    labels = {PROVIDER_LABEL: "provider"}
    metadata = {"name": "api", "namespace": PROVIDER_NAMESPACE, "labels": labels}
    container = {
        "name": "api",
        "image": image,
        "args": ["engine", tier["spec"]["model"], "--provider", "--port=8000"],
        "env": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "api-key", "key": "token"}}},
            {"name": "TIERWISE_SIM_PROFILE", "value": profile},
            {"name": "TIERWISE_SIM_TOKENS_PER_CHUNK", "value": "8"},
            {"name": "TIERWISE_SIM_WAKE_MS", "value": "200"},
        ],
        "ports": [{"containerPort": 8000, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return [
        namespace(PROVIDER_NAMESPACE),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "api-key", "namespace": PROVIDER_NAMESPACE},
            "stringData": {"token": key},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "automountServiceAccountToken": False,
                        "containers": [container],
                        "securityContext": security,
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": "None",
                "selector": labels,
                "ports": [{"name": "http", "port": 8000, "targetPort": "http"}],
            },
        },
    ]
