from decimal import Decimal

import pytest

from tierwise.core import cost, quality
from tierwise.core.quality import Score

SCORES = {"large": Score(0.80), "small": Score(0.55)}


def test_a_floor_is_absolute_or_against_the_reference() -> None:
    def floor(minimum: float | None, loss: float | None, reference: str | None) -> quality.Floor | None:
        return quality.floor(min_score=minimum, max_loss_percent=loss, reference=reference, scores=SCORES)

    absolute, relative = floor(0.7, None, None), floor(None, 5.0, "large")
    assert absolute is not None
    assert relative is not None
    assert absolute.value == 0.7
    assert relative.value == pytest.approx(0.75)
    assert floor(None, None, "large") is None


def test_against_a_reference_of_unknown_score_only_the_reference_holds() -> None:
    found = quality.floor(min_score=None, max_loss_percent=5.0, reference="other", scores=SCORES)
    assert found is not None
    assert (found.value, found.only) == (None, "other")


def test_a_mix_with_an_unknown_score_has_an_unknown_mean() -> None:
    assert quality.mean({"large": 0.5, "small": 0.5}, SCORES) == pytest.approx(0.675)
    assert quality.mean({"large": 0.5, "new": 0.5}, SCORES) is None
    assert quality.mean({"large": 1.0, "new": 0.0}, SCORES) == 0.8


def test_a_running_replica_with_room_has_no_marginal_cost() -> None:
    found = cost.in_cluster(
        price_per_hour=Decimal("3.6"),
        replicas=2,
        tokens_per_second=1000.0,
        utilisation=0.5,
        capacity_tokens_per_second=1000.0,
    )
    assert found.per_hour == Decimal("7.2")
    assert found.per_million_tokens == Decimal(2)
    assert found.marginal_per_million_tokens == 0


def test_a_full_one_needs_its_share_of_one_more() -> None:
    found = cost.in_cluster(
        price_per_hour=Decimal("3.6"),
        replicas=2,
        tokens_per_second=None,
        utilisation=1.1,
        capacity_tokens_per_second=1000.0,
    )
    assert found.per_million_tokens is None
    assert found.marginal_per_million_tokens == Decimal(1)


def test_unknown_prices_and_rates_leave_costs_unknown() -> None:
    nothing = cost.TierCost()
    assert (
        cost.in_cluster(
            price_per_hour=None, replicas=3, tokens_per_second=1.0, utilisation=0.1, capacity_tokens_per_second=1.0
        )
        == nothing
    )
    assert (
        cost.external(
            input_price=Decimal(1), output_price=None, prompt_tokens_per_second=1.0, completion_tokens_per_second=1.0
        )
        == nothing
    )
    assert (
        cost.external(
            input_price=Decimal(1),
            output_price=Decimal(1),
            prompt_tokens_per_second=None,
            completion_tokens_per_second=1.0,
        )
        == nothing
    )


def test_a_provider_costs_its_tokens() -> None:
    found = cost.external(
        input_price=Decimal(3),
        output_price=Decimal(15),
        prompt_tokens_per_second=100.0,
        completion_tokens_per_second=10.0,
    )
    assert found.per_hour == Decimal("1.62")
    assert found.marginal_per_million_tokens == found.per_million_tokens
    idle = cost.external(
        input_price=Decimal(3),
        output_price=Decimal(15),
        prompt_tokens_per_second=0.0,
        completion_tokens_per_second=0.0,
    )
    assert (idle.per_hour, idle.per_million_tokens) == (0, None)


def test_break_even_is_where_a_replica_costs_as_much_as_the_provider() -> None:
    each = cost.per_request(Decimal(3), Decimal(15), 1000.0, 100.0)
    rate = cost.break_even(Decimal("3.6"), each)
    assert rate is not None
    assert rate * each * 3600 == pytest.approx(Decimal("3.6"))
    assert cost.break_even(None, each) is None
    assert cost.break_even(Decimal(1), Decimal(0)) is None
