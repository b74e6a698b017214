"""The outcome of a run: what each arm cost, what its clients got, and which promises held. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tierwise.demo import bill, checks, records
from tierwise.demo.bill import Bill
from tierwise.demo.checks import Check, Standing, Upstream
from tierwise.demo.pods import PodLife
from tierwise.demo.records import Served
from tierwise.demo.terms import Terms
from tierwise.demo.timeline import Arm, Observed

PROMISED = 0.95
"""Objectives are 95th percentiles."""


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """What one class of one arm got. All measured at the clients, but `floor` and the scores (declared).

    Attributes:
        name: of the class.
        requests, answered: counts.
        attainment: share of all its requests that met the objective; None of none.
        ttft_p50_seconds, ttft_p95_seconds, inter_token_p95_seconds: of the answered ones.
        shares: tier -> share of the answers.
        score: mean declared score of these shares. floor: least that the policy accepts.
        scatter: standard error of that mean, since weights are probabilities.
    """

    name: str
    requests: int
    answered: int
    attainment: float | None
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    inter_token_p95_seconds: float | None
    shares: Mapping[str, float]
    score: float | None
    floor: float | None
    scatter: float = 0.0


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """One arm. `bill` is of observed Pods and tokens; attainment is over all its requests."""

    name: str
    namespace: str
    requests: int
    failed: int
    attainment: float
    bill: Bill
    classes: tuple[ClassOutcome, ...]
    most_replicas: Mapping[str, int]

    @property
    def worst(self) -> float:
        """Attainment of the class that has least."""
        return min((entry.attainment for entry in self.classes if entry.attainment is not None), default=0.0)

    @property
    def standing(self) -> Standing:
        """For comparisons."""
        return Standing(self.name, float(self.bill.cost), self.attainment, self.worst)


@dataclass(frozen=True, slots=True)
class Simulated:
    """One row of the offline comparison: same trace, tiers and objectives, in the replica model. All simulated.

    Attributes:
        name: of the rule. cost: in the window, like a bill's. cost_per_hour.
        attainment, worst: of all requests; of the worst class.
        scores: class -> mean score. replica_hours: billed.
        note: how it was chosen.
    """

    name: str
    cost: float
    cost_per_hour: float
    attainment: float
    worst: float
    scores: Mapping[str, float]
    replica_hours: float
    note: str = ""

    @property
    def standing(self) -> Standing:
        """For comparisons."""
        return Standing(self.name, self.cost, self.attainment, self.worst)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run.

    Attributes:
        arms: by name, in order.
        simulated: rows of the offline comparison.
        checks: promises.
        timings: what -> seconds, measured.
        facts: what else a reader needs to judge the figures.
    """

    arms: Mapping[str, ArmOutcome]
    simulated: tuple[Simulated, ...]
    checks: tuple[Check, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """All of them."""
        return all(check.held for check in self.checks)

    @property
    def worked(self) -> bool:
        """The run itself: all but the comparisons."""
        return all(check.held for check in self.checks if not check.comparison)


def arm_outcome(arm: Arm, terms: Terms, seen: Observed, seconds: float) -> ArmOutcome:
    """What one arm cost and gave.

    Args:
        arm: which.
        terms: prices, objectives, floors.
        seen: of all arms.
        seconds: the window, from the first request, in which replicas are billed.
    """
    mine = [record for record in seen.served if record.arm == arm.name]
    classes = []
    met = 0
    for agreed in terms.classes:
        own = [record for record in mine if record.class_name == agreed.name]
        answered = [record for record in own if record.ok]
        shares = records.shares(own)
        met += sum(agreed.objective.met(record) for record in own)
        classes.append(
            ClassOutcome(
                name=agreed.name,
                requests=len(own),
                answered=len(answered),
                attainment=records.attainment(own, agreed.objective),
                ttft_p50_seconds=_percentile(answered, "ttft_seconds", 0.5),
                ttft_p95_seconds=_percentile(answered, "ttft_seconds", 0.95),
                inter_token_p95_seconds=_percentile(answered, "inter_token_seconds", 0.95),
                shares=shares,
                score=terms.score(agreed.name, shares),
                floor=agreed.floor,
                scatter=terms.scatter(agreed.name, shares) / max(1, len(answered)) ** 0.5,
            )
        )
    here = [life for life in seen.lives if life.key.namespace == arm.namespace]
    return ArmOutcome(
        name=arm.name,
        namespace=arm.namespace,
        requests=len(mine),
        failed=sum(not record.ok for record in mine),
        attainment=met / len(mine) if mine else 0.0,
        bill=bill.make(terms, arm.namespace, seen.lives, mine, since_seconds=0.0, until_seconds=seconds),
        classes=tuple(classes),
        most_replicas={tier: _most(here, tier, seconds) for tier in sorted({life.key.tier for life in here})},
    )


def _percentile(served: Sequence[Served], name: str, share: float) -> float | None:
    values = (getattr(record, name) for record in served)
    return records.percentile((value for value in values if value is not None), share)


def _most(lives: Sequence[PodLife], tier: str, seconds: float) -> int:
    mine = [life for life in lives if life.key.tier == tier]
    moments = {max(0.0, life.start_seconds) for life in mine if life.start_seconds <= seconds}
    return max((sum(life.exists(at) for life in mine) for at in moments), default=0)


def live_checks(
    auto: ArmOutcome, large: ArmOutcome | None, served: Sequence[Served], upstream: Sequence[Upstream] | None
) -> tuple[Check, ...]:
    """Promises about the live arms; `upstream` None: upstreams' own logs can not be read here."""
    found = [
        checks.no_failures("every request answered", served),
        checks.client_kept_up(served),
        *([checks.answered_upstream("clients and upstreams agree", served, upstream)] if upstream is not None else []),
        *(
            checks.floor_kept(entry.name, entry.score, entry.floor, entry.scatter)
            for entry in auto.classes
            if entry.requests
        ),
        checks.floor_binds({entry.name: (entry.score, entry.floor) for entry in auto.classes if entry.requests}),
    ]
    if large is not None:
        found.append(
            checks.cheaper("Auto cheaper than all-large (measured)", auto.standing, large.standing, promised=PROMISED)
        )
    return tuple(found)


def simulated_checks(rows: Sequence[Simulated], auto: str) -> tuple[Check, ...]:
    """Promises about the simulated rows: the one named `auto` against each other that keeps the objective too."""
    if not rows:
        return ()
    ours = next((row for row in rows if row.name == auto), None)
    others = [row for row in rows if row.name != auto and row.worst >= PROMISED]
    if ours is None or not others:
        text = "Auto has no row" if ours is None else "no other rule keeps the objective"
        return (Check("Auto compared (simulated)", held=False, text=text),)
    return tuple(
        checks.cheaper(f"Auto cheaper than {row.name} (simulated)", ours.standing, row.standing, promised=PROMISED)
        for row in others
    )


def seconds_of(served: Sequence[Served]) -> float:
    """When the last answer was complete, on the run's clock."""
    return max((record.sent_seconds + (record.latency_seconds or 0.0) for record in served), default=0.0)


def saving(auto: Bill, reference: Bill) -> float | None:
    """How many times dearer the reference is; None when we cost nothing."""
    return float(reference.cost / auto.cost) if auto.cost > 0 else None


def per_million(outcome: ArmOutcome) -> float | None:
    """Cost per million tokens, prompt and completion together; None when none were served."""
    total = sum(tier.prompt_tokens + tier.completion_tokens for tier in outcome.bill.tiers)
    return float(outcome.bill.cost / total * bill.MILLION) if total else None
