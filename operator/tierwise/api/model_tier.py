"""ModelTier: one way to answer requests, an engine in the cluster or a provider outside, with price and quality."""

import re
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.external import External
from tierwise.api.in_cluster import InCluster
from tierwise.api.meta import ApiObject, Kind, PrinterColumn
from tierwise.api.model_tier_status import ModelTierStatus
from tierwise.api.scalars import Score, Sensitivity
from tierwise.api.shapes import TIER_NAME, TIER_NAME_LENGTH, Label, UpstreamModel, list_map, unique


class TierQuality(ApiModel):
    """How well the tier does one task."""

    task: Label
    """The task, by the name that classes of a RoutingPolicy use in `task`."""
    score: Score
    """Share of the task's questions that the tier answers well, as a quoted decimal number from 0 to 1, such as
    "0.93"."""
    source: Annotated[str | None, Field(max_length=256)] = None
    """Where the score comes from, for people: an evaluation and its date, or a publication."""


class ModelTierSpec(ApiModel):
    """What the user wants of the tier."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.inCluster) != has(self.external)",
            "exactly one of spec.inCluster and spec.external must be set: inCluster for an engine that Tierwise runs, "
            "external for a "
            "provider's API; remove one or add the other",
            lambda s: (s.in_cluster is None) != (s.external is None),
        ),
    )

    model: UpstreamModel
    """Name of the model in the body of requests to this tier: what the engine serves or the provider offers.
    Clients ask for a RoutingPolicy's models instead; the gateway replaces the name."""
    clearance: Sensitivity | None = None
    """Highest sensitivity of a request that this tier may see: Public, Internal, Confidential or Restricted. Never
    relaxed. When absent: Restricted for an in-cluster tier, Public for an external one."""
    in_cluster: InCluster | None = None
    """An engine that Tierwise runs in this namespace. Exactly one of inCluster and external must be set."""
    external: External | None = None
    """A provider's OpenAI-compatible API. Exactly one of inCluster and external must be set."""
    quality: Annotated[
        tuple[TierQuality, ...],
        Field(max_length=32, json_schema_extra=list_map("task")),
        unique("spec.quality states a task twice: keep one score per task", lambda q: q.task),
    ] = ()
    """Declared quality by task. A task without an entry is unknown, and unknown quality satisfies no floor."""

    @property
    def effective_clearance(self) -> Sensitivity:
        """The clearance with its default applied."""
        if self.clearance is not None:
            return self.clearance
        return Sensitivity.PUBLIC if self.in_cluster is None else Sensitivity.RESTRICTED

    def score(self, task: str | None) -> Decimal | None:
        """The declared score of a task, None when unknown."""
        return next((q.score for q in self.quality if q.task == task), None)


class ModelTier(ApiObject[ModelTierSpec, ModelTierStatus]):
    """One way to answer requests: an engine in the cluster or a provider's API, with its price, limits and quality."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.size() <= {TIER_NAME_LENGTH} && self.metadata.name.matches('{TIER_NAME}')",
            f'metadata.name must be at most {TIER_NAME_LENGTH} lower-case letters, digits and "-", a letter first: it '
            f"names a "
            "Service and metrics; choose another name",
            lambda o: len(o.metadata.name) <= TIER_NAME_LENGTH and re.fullmatch(TIER_NAME, o.metadata.name) is not None,
            "metadata.name",
        ),
    )
    KIND: ClassVar[Kind] = Kind(
        kind="ModelTier",
        plural="modeltiers",
        short_name="mtier",
        columns=(
            PrinterColumn("Model", ".spec.model", "Name of the model at the engine or provider"),
            PrinterColumn(
                "Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether requests can be sent to the tier"
            ),
            PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why it is or is not ready"),
            PrinterColumn("Replicas", ".status.replicas.ready", "Replicas that are ready", "integer"),
            PrinterColumn("Min", ".status.replicas.min", "Lower bound of the autoscaler now", "integer", 1),
            PrinterColumn("Max", ".status.replicas.max", "Upper bound of the autoscaler now", "integer", 1),
            PrinterColumn("Cost/h", ".status.cost.perHour", "Cost of the last hour's rate, in the tier's currency"),
            PrinterColumn(
                "Cost/Mtok", ".status.cost.perMillionTokens", "Effective cost per million tokens", "string", 1
            ),
            PrinterColumn(
                "TTFT-p95", ".status.latency.ttftP95", "95th percentile of the time to first token", "string", 1
            ),
            PrinterColumn("Clearance", ".spec.clearance", "Highest sensitivity that it may see", "string", 1),
            PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", "date"),
        ),
    )

    status: ModelTierStatus = ModelTierStatus()
