"""What Tierwise reports about a RoutingPolicy: gateways, weights, what binds, and the last decision."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tierwise.api.base import StatusModel
from tierwise.api.meta import Conditions, Provenance, Time
from tierwise.api.scalars import Bool, Figure, Int, Percent, Sensitivity
from tierwise.api.shapes import ATOMIC, list_map

Name = Annotated[str, Field(max_length=253)]
Word = Annotated[str, Field(max_length=128)]
Sentence = Annotated[str, Field(max_length=2048)]
Count = Annotated[Int, Field(ge=0)]


class Binding(StrEnum):
    """What keeps a class from a cheaper mix of tiers."""

    NONE = "None"
    OBJECTIVE = "Objective"
    QUALITY_FLOOR = "QualityFloor"
    CEILING = "Ceiling"
    CLEARANCE = "Clearance"
    CAPACITY = "Capacity"
    STEP = "Step"
    LIMITS = "Limits"
    STALE = "Stale"
    MANUAL = "Manual"


class GatewayStatus(StatusModel):
    """The gateways that one operator replica serves."""

    name: Name
    """Name of the operator replica."""
    hash: Annotated[str | None, Field(max_length=128)] = None
    """Version of the policy's configuration that the replica offers: a hash of its content."""
    connected: Count = 0
    """Gateways that are connected to the replica."""
    acknowledged: Count = 0
    """Connected gateways that have taken this version."""
    refused: Count = 0
    """Connected gateways that have refused it; they serve the last version that they took."""
    message: Sentence | None = None
    """What a gateway said when it refused."""
    last_transition_time: Time | None = None
    """When one of these last changed."""


class TierWeight(StatusModel):
    """Share of one tier in a class."""

    tier: Name
    """Name of the ModelTier."""
    percent: Percent
    """Percent of the class's requests that the gateway sends to the tier now."""
    wanted: Percent | None = None
    """Percent that the last plan found best, where steps, cool-down or mode have not let it happen yet."""


class ClassStatus(StatusModel):
    """One class of the policy."""

    name: Name
    """Name of the class."""
    sensitivity: Sensitivity | None = None
    """Least sensitivity of its requests: the higher of the policy's and the class's."""
    weights: Annotated[tuple[TierWeight, ...], Field(max_length=8, json_schema_extra=list_map("tier"))] = ()
    """Share of each tier."""
    relieved_below_floor: Bool | None = None
    """Whether tiers below the quality floor too may take what a saturated tier passes on: the floor holds on average,
    and enough quality was earned. Absent where that can not be."""
    binding: Binding | None = None
    """What keeps the class from a cheaper mix: None, Objective, QualityFloor, Ceiling, Clearance, Capacity, Step,
    Limits, Stale or Manual."""
    reason: Word | None = None
    """Why the weights are what they are, as one CamelCase word."""
    message: Sentence | None = None
    """Why the weights are what they are, for people."""
    last_move_time: Time | None = None
    """When the weights last changed."""


class Saving(StatusModel):
    """What the policy saves against sending everything to the reference tier."""

    cost_per_hour: Figure | None = None
    """Cost per hour of the policy's requests, idle and starting replicas included."""
    reference_cost_per_hour: Figure | None = None
    """What the same requests would cost per hour on the reference tier alone."""
    factor: Figure | None = None
    """Reference cost divided by cost: 3 means a third of the cost."""
    provenance: Provenance
    """Measured, Estimated or Declared; the reference cost is at best estimated."""
    currency: Annotated[str, Field(max_length=3)]
    """Currency of the figures."""


class DecisionInput(StatusModel):
    """One figure that the decision rested on."""

    name: Word
    """What it is, such as tier/compact/requestsPerSecond."""
    value: Figure | None = None
    """The figure; absent when it was unknown."""
    provenance: Provenance | None = None
    """Measured, Estimated or Declared."""
    age_seconds: Count | None = None
    """How old the figure was, in seconds."""


class DecisionOption(StatusModel):
    """One alternative that was weighed."""

    name: Word
    """What it is."""
    cost_per_hour: Figure | None = None
    """What it would cost per hour."""
    feasible: Bool
    """Whether it meets every objective, floor and limit."""
    reason: Annotated[str | None, Field(max_length=512)] = None
    """Why it was taken or not."""


class ClassBinding(StatusModel):
    """What kept one class from a cheaper mix."""

    name: Name
    """Name of the class."""
    binding: Binding
    """None, Objective, QualityFloor, Ceiling, Clearance, Capacity, Step, Limits, Stale or Manual."""


class Realised(StatusModel):
    """What was measured after a decision, over a window in which nothing else moved."""

    cost_per_hour: Figure
    """Cost per hour of the namespace: replica-seconds and reported tokens, at their prices."""
    requests_per_second: Figure | None = None
    """Requests per second meanwhile."""
    saving_percent: Figure | None = None
    """Saving against what the weights before would have cost. Absent when demand was another one, as costs then are
    no more comparable."""
    seconds: Count
    """Length of the window."""
    provenance: Provenance
    """Measured. The cost before, which a saving is against, is estimated."""


class Decision(StatusModel):
    """The last decision that moved something, with what it rested on."""

    id: Word
    """Identifies the decision in events and logs: a hash of its inputs."""
    time: Time
    """When it was made."""
    reason: Word
    """Why, as one CamelCase word."""
    message: Sentence
    """Why, for people."""
    inputs: Annotated[tuple[DecisionInput, ...], Field(max_length=64, json_schema_extra=ATOMIC)] = ()
    """Figures that it rested on."""
    options: Annotated[tuple[DecisionOption, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """Alternatives that were weighed."""
    bindings: Annotated[tuple[ClassBinding, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """What kept each class from a cheaper mix."""
    relaxed: Annotated[tuple[Sentence, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """Constraints that gave way, with whom they concern."""
    currency: Annotated[str | None, Field(max_length=3)] = None
    """Currency of the costs; absent when the tiers' prices have several, or none."""
    cost_before_per_hour: Figure | None = None
    """Estimated cost per hour of the namespace with the weights before, at the demand that was planned for."""
    expected_cost_per_hour: Figure | None = None
    """Estimated cost per hour of the namespace once the decision is carried out, at the same demand."""
    expected_saving_percent: Figure | None = None
    """Saving that was expected of it, in percent of the cost before."""
    realised: Realised | None = None
    """What was measured afterwards; absent until it is known, or when something else moved first."""


class RoutingPolicyStatus(StatusModel):
    """What Tierwise sees. What is not known is absent."""

    observed_generation: Annotated[Int | None, Field(ge=0)] = None
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready is always present; Reconciling and Stalled only when True."""
    gateways: Annotated[tuple[GatewayStatus, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """What each operator replica sees of the gateways that it serves."""
    classes: Annotated[tuple[ClassStatus, ...], Field(max_length=16, json_schema_extra=list_map("name"))] = ()
    """Weights of each class, and why."""
    saving: Saving | None = None
    """What the policy saves."""
    decision: Decision | None = None
    """The last decision that moved something."""
