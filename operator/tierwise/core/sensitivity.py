"""How confidential a request is, and which tiers may see it. Nothing in this module ever lowers a sensitivity."""

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity

UNSAFE = "unsafe configuration: "
"""Begins what is said of a gateway configuration that would send a request where it must not go."""

_BY_NAME = {level.value.lower(): level for level in Sensitivity}


def of_header(value: str | None) -> Sensitivity | None:
    """Sensitivity that a request's header asks for, None when the request has none.

    A value that names no level, an empty or a repeated header included, is Restricted: who marks a request as sensitive
    in words that we do not understand must not find it at a provider.
    """
    if value is None:
        return None
    return _BY_NAME.get(value.strip().lower(), Sensitivity.RESTRICTED)


def effective(policy: RoutingPolicy, routing_class: RoutingClass, header: str | None = None) -> Sensitivity:
    """Sensitivity of a request: the highest of the policy's, the class's and the header's."""
    least = policy.spec.class_sensitivity(routing_class)
    return max(least, of_header(header) or least)


def cleared(tier: ModelTier, sensitivity: Sensitivity) -> bool:
    """Whether the tier may see a request of this sensitivity."""
    return tier.spec.effective_clearance >= sensitivity
