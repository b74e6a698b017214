"""The PodDisruptionBudget of an in-cluster tier."""

from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import Manifest
from tierwise.render import labels


def disruption_budget(tier: ModelTier) -> Manifest:
    """One replica at a time may be evicted.

    Never `minAvailable`: with one replica that would block every node drain.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": labels.metadata(tier),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels.selector(tier)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
