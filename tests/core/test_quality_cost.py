from decimal import Decimal

import pytest

from tierwise.core import cost, quality
from tierwise.core.quality import Score


def floor(**fields):
    given = {"min_score": None, "max_loss_percent": None, "reference": None, "scores": {}} | fields
    return quality.floor(**given)


def test_a_loss_is_counted_in_points_below_the_reference():
    assert floor(max_loss_percent=1.0, reference="l", scores={"l": Score(0.86)}).value == pytest.approx(0.85)
    assert floor(min_score=0.9).value == 0.9
    assert floor() is None


def test_against_an_unknown_reference_only_the_reference_holds():
    found = floor(max_loss_percent=1.0, reference="l", scores={"s": Score(0.99)})
    assert found.value is None
    assert found.only == "l"


def test_the_mean_of_a_mix_is_unknown_when_a_part_is():
    scores = {"a": Score(0.5), "b": Score(0.9)}
    assert quality.mean({"a": 0.5, "b": 0.5}, scores) == pytest.approx(0.7)
    assert quality.mean({"a": 0.5, "z": 0.5}, scores) is None
    assert quality.mean({"a": 1.0, "z": 0.0}, scores) == 0.5


def test_an_idle_replica_costs_but_its_next_token_does_not():
    found = cost.in_cluster(
        price_per_hour=Decimal(7), replicas=2, tokens_per_second=0.0, utilisation=0.0, capacity_tokens_per_second=500.0
    )
    assert found.per_hour == 14
    assert found.per_million_tokens is None
    assert found.marginal_per_million_tokens == 0


def test_a_full_replica_charges_its_share_of_the_next():
    found = cost.in_cluster(
        price_per_hour=Decimal(36), replicas=1, tokens_per_second=1e3, utilisation=1.1, capacity_tokens_per_second=1e3
    )
    assert found.per_million_tokens == 10
    assert found.marginal_per_million_tokens == 10


def test_unknown_prices_and_usage_give_no_figures():
    assert cost.in_cluster(
        price_per_hour=None, replicas=1, tokens_per_second=1, utilisation=0, capacity_tokens_per_second=1
    ) == cost.TierCost()  # fmt: skip
    assert cost.external(
        input_price=Decimal(3), output_price=Decimal(15), prompt_tokens_per_second=None, completion_tokens_per_second=1
    ) == cost.TierCost()  # fmt: skip


def test_providers_cost_their_tokens():
    found = cost.external(
        input_price=Decimal(3), output_price=Decimal(15), prompt_tokens_per_second=1e3, completion_tokens_per_second=1e2
    )
    assert found.per_hour == (Decimal(3000) + Decimal(1500)) * 3600 / 1_000_000
    assert cost.break_even(Decimal(36), Decimal("0.01")) == 1
    assert cost.break_even(None, Decimal(1)) is None
