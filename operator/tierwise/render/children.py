"""All objects that one tier owns."""

import json

from tierwise.api.model_tier import ModelTier
from tierwise.core.digest import digest
from tierwise.core.plan import Manifest, ReplicaBounds
from tierwise.render import autoscaler, deployment, disruption, labels, service


def children(
    tier: ModelTier, bounds: ReplicaBounds, *, prometheus_url: str = autoscaler.DEFAULT_PROMETHEUS
) -> tuple[Manifest, ...]:
    """Deployment, Service, autoscaler and PodDisruptionBudget of an in-cluster tier; nothing for an external one.

    Args:
        tier: a valid tier whose metadata has the uid that the owner references need.
        bounds: least and most replicas, from the loop. With `max` 0 the tier is scaled to zero on purpose.
        prometheus_url: where KEDA reads the engine's metric; an HPA needs none.
    """
    spec = tier.spec.in_cluster
    if spec is None:
        return ()
    return tuple(
        _stamped(child)
        for child in (
            deployment.deployment(tier, spec),
            service.service(tier, spec),
            autoscaler.autoscaler(tier, spec, bounds, prometheus_url),
            disruption.disruption_budget(tier),
        )
    )


def _stamped(manifest: Manifest) -> Manifest:
    """With a hash of itself, so that a field that is no longer wanted is a difference too.

    Fields that are only missing in what is wanted look like somebody else's: `drift` has to leave those alone.
    """
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), labels.RENDERED_ANNOTATION: digest(content.encode())}
    return {**manifest, "metadata": {**metadata, "annotations": dict(sorted(annotations.items()))}}
