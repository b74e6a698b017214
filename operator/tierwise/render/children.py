"""All objects that one tier owns."""

from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import Manifest, ReplicaBounds
from tierwise.render import autoscaler, deployment, disruption, service


def children(tier: ModelTier, bounds: ReplicaBounds) -> tuple[Manifest, ...]:
    """Deployment, Service, autoscaler and PodDisruptionBudget of an in-cluster tier; nothing for an external one.

    Args:
        tier: a valid tier whose metadata has the uid that the owner references need.
        bounds: least and most replicas, from the loop. With `max` 0 the tier is scaled to zero on purpose.
    """
    spec = tier.spec.in_cluster
    if spec is None:
        return ()
    return (
        deployment.deployment(tier, spec),
        service.service(tier, spec),
        autoscaler.autoscaler(tier, spec, bounds),
        disruption.disruption_budget(tier),
    )
