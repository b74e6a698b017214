"""What Tierwise reports about a ModelTier."""

from typing import Annotated

from pydantic import Field

from tierwise.api.base import StatusModel
from tierwise.api.meta import Conditions, Provenance
from tierwise.api.scalars import Duration, Figure, Int

Count = Annotated[Int, Field(ge=0)]


class TierReplicas(StatusModel):
    """Replicas of an in-cluster tier."""

    desired: Count | None = None
    """What the last plan found best."""
    min: Count | None = None
    """Lower bound that the autoscaler has now."""
    max: Count | None = None
    """Upper bound that the autoscaler has now."""
    current: Count | None = None
    """Replicas that exist, starting ones included: all of them cost money."""
    ready: Count | None = None
    """Replicas that take requests."""


class TierCapacity(StatusModel):
    """What one replica, or the provider, can serve within the objective."""

    requests_per_second: Figure | None = None
    """Requests per second; of one replica for an in-cluster tier, of the whole tier for an external one."""
    saturation_requests_per_second: Figure | None = None
    """Requests per second at which one replica is saturated, as learnt: where learning goes on after a restart."""
    concurrent_requests: Annotated[Int | None, Field(ge=1)] = None
    """Requests in flight of one replica at nine tenths of that load, told from its learnt speed and the mix of
    requests. Gateways give an in-cluster tier no more for each ready replica, of the classes whose fallback lists
    Saturated; absent where none has yet."""
    provenance: Provenance
    """Measured, Estimated or Declared."""


class TierLatency(StatusModel):
    """Latency of the tier."""

    ttft_p95: Duration | None = None
    """95th percentile of the time to first token."""
    inter_token_p95: Duration | None = None
    """95th percentile over requests of the mean time between a request's tokens."""
    provenance: Provenance
    """Measured, Estimated or Declared."""


class TierCost(StatusModel):
    """What the tier costs. Figures are rounded and change when a decision does, not with every measurement."""

    per_hour: Figure | None = None
    """Cost per hour at the present rate: running and starting replicas, or tokens."""
    per_million_tokens: Figure | None = None
    """Effective cost per million tokens: all cost over all tokens. For an idle replica this is high, and no basis
    for a decision."""
    marginal_per_million_tokens: Figure | None = None
    """What one million more tokens would cost: zero while running replicas have room."""
    break_even_requests_per_second: Figure | None = None
    """Rate of requests above which the tier is cheaper than the next dearer one."""
    currency: Annotated[str, Field(max_length=3)]
    """Currency of the figures."""
    provenance: Provenance
    """Measured, Estimated or Declared."""


class ModelTierStatus(StatusModel):
    """What Tierwise sees. What is not known is absent."""

    observed_generation: Annotated[Int | None, Field(ge=0)] = None
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready is always present; Reconciling and Stalled only when True."""
    replicas: TierReplicas | None = None
    """Replicas; in-cluster tiers only."""
    capacity: TierCapacity | None = None
    """What can be served within the objective."""
    latency: TierLatency | None = None
    """Latency of the tier."""
    cost: TierCost | None = None
    """What the tier costs."""
