"""RoutingPolicy: which models clients may ask for, and how their requests are spread over tiers."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.meta import NAME_IN_METRICS, ApiObject, Kind, PrinterColumn
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy_status import RoutingPolicyStatus
from tierwise.api.scalars import Bool, Duration, Int, Percent, Sensitivity
from tierwise.api.shapes import ATOMIC, SET, Hostname, ModelName, TierName, unique


class RebalanceMode(StrEnum):
    """Who moves weights."""

    AUTO = "Auto"
    RECOMMEND = "Recommend"
    MANUAL = "Manual"


class Rebalance(ApiModel):
    """How weights move."""

    mode: RebalanceMode = RebalanceMode.AUTO
    """Auto: Tierwise moves weights and replicas. Recommend: it only reports what it would do. Manual: weights stay
    as written."""
    interval: Duration = Field(default="30s", validate_default=True)
    """Time between decisions."""
    max_step_percent: Annotated[Int, Field(ge=1, le=100)] = 20
    """Most percentage points that a tier's weight moves in one decision."""
    min_saving_percent: Percent = 2
    """Least saving, in percent of the present cost, for which weights are moved. Moves for an objective or a floor
    need none."""
    cooldown: Duration = Field(default="2m", validate_default=True)
    """Time after a move during which a class is not moved back."""


# A CEL map, which Python happens to print in CEL's syntax; the API server can bound its cost, unlike that of indexOf.
_RANKS = {level.value: level.rank for level in Sensitivity}


def _only_last_takes_all(spec: "RoutingPolicySpec") -> bool:
    return all(c.match is not None for c in spec.classes[:-1])


class RoutingPolicySpec(ApiModel):
    """What the user wants of the policy."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.classes.all(c, self.classes.exists_one(o, o.name == c.name))",
            "classes has two classes of the same name: rename one",
            lambda s: len({c.name for c in s.classes}) == len(s.classes),
            "classes",
        ),
        Rule(
            "self.classes.filter(c, !has(c.match)).size() <= (has(self.classes[self.classes.size() - 1].match) ? 0 : "
            "1)",
            "classes has a class without match before the last, which hides those after it: give it a match or move "
            "it to the end",
            _only_last_takes_all,
            "classes",
        ),
        Rule(
            f"self.classes.all(c, !has(c.sensitivity) || {_RANKS}[c.sensitivity] >= {_RANKS}[self.sensitivity])",
            "classes has a class whose sensitivity is below spec.sensitivity, which can not be lowered: raise the "
            "class's, or lower the policy's",
            lambda s: all(c.sensitivity is None or c.sensitivity >= s.sensitivity for c in s.classes),
            "classes",
        ),
        Rule(
            "!has(self.referenceTier) || self.classes.exists(c, c.tiers.exists(t, t.name == self.referenceTier))",
            "referenceTier is listed by no class: add it to the tiers of a class, or name a tier that is listed",
            lambda s: s.reference_tier is None or s.reference_tier in s.tier_names,
            "referenceTier",
        ),
        Rule(
            "has(self.referenceTier) || !self.classes.exists(c, has(c.quality) && has(c.quality.maxLossPercent))",
            "referenceTier is required when a class sets quality.maxLossPercent: name the tier that the loss is "
            "measured against, or use minScore",
            lambda s: (
                s.reference_tier is not None
                or not any(c.quality is not None and c.quality.max_loss_percent is not None for c in s.classes)
            ),
            "referenceTier",
        ),
        Rule(
            "self.classes.all(c, !has(c.match) || !has(c.match.models) || c.match.models.all(m, m in self.models))",
            "classes has a class that matches a model which spec.models does not list: add it to spec.models or "
            "remove it from match.models",
            lambda s: all(
                {*c.match.models} <= {*s.models}
                for c in s.classes
                if c.match is not None and c.match.models is not None
            ),
            "classes",
        ),
    )

    models: Annotated[
        tuple[ModelName, ...],
        Field(min_length=1, max_length=32, json_schema_extra=SET),
        unique("spec.models lists a model twice: keep one"),
    ]
    """Models that clients ask for, unique in the namespace (the oldest policy wins)."""
    hostnames: Annotated[
        tuple[Hostname, ...],
        Field(max_length=16, json_schema_extra=SET),
        unique("spec.hostnames lists a name twice: keep one"),
    ] = ()
    """Host names under which clients reach the policy. When empty: any, with the namespace taken from the consumer
    or the model's name."""
    sensitivity: Sensitivity
    """Sensitivity of every request of this policy at the least: Public, Internal, Confidential or Restricted. A
    request reaches only tiers with that clearance. Classes and a request's header may raise it."""
    reference_tier: TierName | None = None
    """The tier that all requests would go to without Tierwise ("all-large"): savings and quality losses are measured
    against it."""
    classes: Annotated[tuple[RoutingClass, ...], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)]
    """Classes of requests, in order: the first that matches takes the request. A request that none takes is refused
    with 400."""
    rebalance: Rebalance = Rebalance()
    """How weights move."""
    suspend: Bool = False
    """Stops every change of weights and replica bounds by this policy; traffic flows on as it is."""

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of all tiers that classes list, sorted."""
        return tuple(sorted({t.name for c in self.classes for t in c.tiers}))

    def routing_class(self, name: str) -> RoutingClass | None:
        """The class of that name, None when there is none."""
        return next((c for c in self.classes if c.name == name), None)

    def class_sensitivity(self, routing_class: RoutingClass) -> Sensitivity:
        """The least sensitivity of a class's requests: the higher of the policy's and the class's."""
        return max(self.sensitivity, routing_class.sensitivity or self.sensitivity)


class RoutingPolicy(ApiObject[RoutingPolicySpec, RoutingPolicyStatus]):
    """Which models clients may ask for, what their requests are promised, and which tiers may answer."""

    RULES: ClassVar[tuple[Rule, ...]] = (NAME_IN_METRICS,)
    KIND: ClassVar[Kind] = Kind(
        kind="RoutingPolicy",
        plural="routingpolicies",
        short_name="rpol",
        columns=(
            PrinterColumn("Models", ".spec.models[*]", "Models that clients ask for"),
            PrinterColumn(
                "Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether every gateway serves the policy"
            ),
            PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why it is or is not ready"),
            PrinterColumn("Mode", ".spec.rebalance.mode", "Who moves weights"),
            PrinterColumn("Cost/h", ".status.saving.costPerHour", "Cost per hour of the policy's requests"),
            PrinterColumn(
                "Saving", ".status.saving.factor", "How many times dearer all requests on the reference tier would be"
            ),
            PrinterColumn("Sensitivity", ".spec.sensitivity", "Least sensitivity of its requests", "string", 1),
            PrinterColumn("Last-Move", ".status.decision.time", "When the last decision was made", "date", 1),
            PrinterColumn("Why", ".status.decision.reason", "Why the last decision was made", "string", 1),
            PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", "date"),
        ),
    )

    status: RoutingPolicyStatus = RoutingPolicyStatus()
