"""What was agreed: prices, scores, objectives and floors, as `examples/` declares them. Pure.

The bill is made from these and from what was observed, so it needs no word of the operator's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.demo.records import Objective


@dataclass(frozen=True, slots=True)
class TierTerms:
    """One tier.

    Attributes:
        name: of the tier. model: that it serves.
        per_replica_hour: price; None for an external tier.
        input_per_million, output_per_million: prices of tokens; None for an in-cluster tier.
        quality: task -> declared score.
        startup_seconds: declared; 0 for an external tier.
        min_replicas, max_replicas: the user's bounds.
    """

    name: str
    model: str
    per_replica_hour: Decimal | None
    input_per_million: Decimal | None
    output_per_million: Decimal | None
    quality: Mapping[str, float]
    startup_seconds: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 0

    @property
    def external(self) -> bool:
        """Paid per token."""
        return self.per_replica_hour is None


@dataclass(frozen=True, slots=True)
class ClassTerms:
    """One class.

    Attributes:
        name: of the class. task: key of its scores.
        objective: in seconds.
        floor: least mean score that it accepts; None: none.
        floor_text: how the user wrote it.
        prompt_min, prompt_max: prompt sizes that it matches, tokens; None: no bound.
        tiers: that it may use, in order.
    """

    name: str
    task: str | None
    objective: Objective
    floor: float | None
    floor_text: str
    prompt_min: int | None
    prompt_max: int | None
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """A policy and its tiers.

    Attributes:
        model: what clients ask for.
        policy: the policy's name.
        reference: the tier that "all-large" sends everything to.
        tiers: by name. classes: in order of matching.
        currency: of all prices.
    """

    model: str
    policy: str
    reference: str
    tiers: Mapping[str, TierTerms]
    classes: tuple[ClassTerms, ...]
    currency: str

    def class_of(self, prompt_tokens: int) -> ClassTerms | None:
        """The class of a request with a prompt of this size; None when none matches."""
        for entry in self.classes:
            low, high = entry.prompt_min, entry.prompt_max
            if (low is None or prompt_tokens >= low) and (high is None or prompt_tokens <= high):
                return entry
        return None

    def score(self, class_name: str, shares: Mapping[str, float]) -> float | None:
        """Mean declared score of a mix in a class's task; None when a tier's score is not known."""
        task = next(entry.task for entry in self.classes if entry.name == class_name)
        total = 0.0
        for tier, share in shares.items():
            score = self.tiers[tier].quality.get(task) if task is not None and tier in self.tiers else None
            if score is None:
                return None
            total += share * score
        return total if shares else None

    def scatter(self, class_name: str, shares: Mapping[str, float]) -> float:
        """Standard deviation of the score of one request of a mix; 0 where scores are not known."""
        mean = self.score(class_name, shares)
        if mean is None:
            return 0.0
        task = next(entry.task for entry in self.classes if entry.name == class_name)
        scores = {tier: self.tiers[tier].quality.get(task or "", mean) for tier in shares}
        return float(sum(share * (scores[tier] - mean) ** 2 for tier, share in shares.items()) ** 0.5)


def read(tiers: Iterable[ModelTier], policy: RoutingPolicy) -> Terms:
    """The terms that these objects state.

    Raises:
        ValueError: when the policy names no reference tier, for then there is nothing to compare with.
    """
    known = {tier.metadata.name: _tier(tier) for tier in tiers}
    reference = policy.spec.reference_tier
    if reference is None or reference not in known:
        raise ValueError(f"policy {policy.metadata.name} needs a referenceTier among {', '.join(sorted(known))}")
    currencies = {tier_currency(tier) for tier in tiers} - {None}
    return Terms(
        model=policy.spec.models[0],
        policy=policy.metadata.name,
        reference=reference,
        tiers=dict(sorted(known.items())),
        classes=tuple(_class(entry, known, reference) for entry in policy.spec.classes),
        currency=str(next(iter(sorted(str(each) for each in currencies)), "USD")),
    )


def tier_currency(tier: ModelTier) -> str | None:
    """The currency of a tier's price; None when it states none."""
    inside, outside = tier.spec.in_cluster, tier.spec.external
    if inside is not None and inside.price is not None:
        return str(inside.price.currency)
    if outside is not None and outside.price is not None:
        return str(outside.price.currency)
    return None


def _tier(tier: ModelTier) -> TierTerms:
    inside, outside = tier.spec.in_cluster, tier.spec.external
    price = outside.price if outside is not None else None
    return TierTerms(
        name=tier.metadata.name,
        model=tier.spec.model,
        per_replica_hour=inside.price.per_replica_hour if inside is not None and inside.price is not None else None,
        input_per_million=price.input_per_million_tokens if price is not None else None,
        output_per_million=price.output_per_million_tokens if price is not None else None,
        quality={entry.task: float(entry.score) for entry in tier.spec.quality},
        startup_seconds=float(inside.replicas.startup_seconds) if inside is not None else 0.0,
        min_replicas=inside.replicas.min if inside is not None else 0,
        max_replicas=inside.replicas.max if inside is not None else 0,
    )


def _class(entry: RoutingClass, tiers: Mapping[str, TierTerms], reference: str) -> ClassTerms:
    floor, text = None, "none"
    if entry.quality is not None and entry.quality.min_score is not None:
        floor, text = float(entry.quality.min_score), f"score at least {entry.quality.min_score}"
    elif entry.quality is not None and entry.quality.max_loss_percent is not None:
        loss = float(entry.quality.max_loss_percent)
        score = tiers[reference].quality.get(entry.task or "")
        floor = score - loss / 100 if score is not None else None
        text = f"at most {loss:g} points below {reference}"
    prompt = entry.match.prompt_tokens if entry.match is not None else None
    wanted = entry.objective
    return ClassTerms(
        name=entry.name,
        task=entry.task,
        objective=Objective(
            ttft_seconds=wanted.ttft_p95.seconds if wanted is not None and wanted.ttft_p95 is not None else None,
            inter_token_seconds=(
                wanted.inter_token_p95.seconds if wanted is not None and wanted.inter_token_p95 is not None else None
            ),
            latency_seconds=(
                wanted.latency_p95.seconds if wanted is not None and wanted.latency_p95 is not None else None
            ),
        ),
        floor=floor,
        floor_text=text,
        prompt_min=prompt.min if prompt is not None else None,
        prompt_max=prompt.max if prompt is not None else None,
        tiers=tuple(ref.name for ref in entry.tiers),
    )
