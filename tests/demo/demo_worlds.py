"""Small values that the demo's tests are made of."""

from decimal import Decimal

from tierwise.demo.pods import PodKey, PodLife
from tierwise.demo.records import Objective, Served
from tierwise.demo.terms import ClassTerms, Terms, TierTerms

OBJECTIVE = Objective(ttft_seconds=2.0, inter_token_seconds=0.08)


def terms() -> Terms:
    return Terms(
        model="assistant",
        policy="assistant",
        reference="large",
        tiers={
            "compact": TierTerms("compact", "small", Decimal("1.80"), None, None, {"easy": 0.8, "hard": 0.5}),
            "large": TierTerms("large", "big", Decimal("7.20"), None, None, {"easy": 0.9, "hard": 0.7}),
            "provider": TierTerms("provider", "far", None, Decimal("2.00"), Decimal("10.00"), {"easy": 0.95}),
        },
        classes=(
            ClassTerms("complex", "hard", OBJECTIVE, 0.65, "", 1500, None, ("large",)),
            ClassTerms("routine", "easy", OBJECTIVE, 0.82, "", None, None, ("compact", "large", "provider")),
        ),
        currency="USD",
    )


def life(
    start: float,
    end: float | None = None,
    *,
    ready: float | None = None,
    tier: str = "compact",
    namespace: str = "demo",
    name: str = "",
) -> PodLife:
    uid = name or f"{tier}-{start}"
    return PodLife(PodKey(namespace, tier, uid), uid, start, start + 1 if ready is None else ready, end)


def record(
    number: int,
    *,
    arm: str = "auto",
    tier: str | None = "compact",
    class_name: str = "routine",
    sent: float = 0.0,
    ttft: float | None = 0.5,
    gap: float | None = 0.04,
    status: int | None = 200,
    prompt: int | None = 100,
    completion: int | None = 10,
    error: str = "",
) -> Served:
    return Served(
        arm=arm,
        request_id=f"r{number}",
        class_name=class_name,
        tier=tier,
        scheduled_seconds=sent,
        sent_seconds=sent,
        status=status,
        ttft_seconds=ttft,
        inter_token_seconds=gap,
        latency_seconds=1.0,
        prompt_tokens=prompt,
        completion_tokens=completion,
        attempts=1,
        error=error,
    )
