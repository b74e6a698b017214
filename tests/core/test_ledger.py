from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import charges, ledger
from tierwise.core.ledger import Account, TokenPrices, Use
from tierwise.core.signals import CounterReading

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
PRICES = TokenPrices(Decimal(3), Decimal("0.3"), Decimal(15))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def account() -> Account:
    return Account(START, END, NOW)


def reading(until: float, requests: float = 10.0, with_usage: float | None = None, **tokens: float) -> CounterReading:
    known = requests if with_usage is None else with_usage
    counts = {"input_tokens": 1000.0 * known, "cached_input_tokens": 0.0, "output_tokens": 100.0 * known, **tokens}
    return CounterReading(requests, known, since=at(until - 5), until=at(until), **counts)


def own(replicas: int | None, price: str | None = "3.6", most: int = 8) -> Use:
    return Use("own", replicas, most, Decimal(price) if price else None)


def provider(read: CounterReading | None, prices: TokenPrices | None = PRICES) -> Use:
    return Use("provider", external=True, token_prices=prices, reading=read)


def accrue(held: Account, seconds: float, *uses: Use) -> Account:
    return ledger.accrue(held, uses, at(seconds), max_gap_seconds=90)


def test_replica_seconds_are_measured_and_cost_their_price() -> None:
    held = accrue(accrue(accrue(account(), 10, own(2)), 20, own(3)), 30, own(3))
    assert held.entries["own"].replica_seconds == 20 + 20 + 30, "an interval is charged for what its first look saw"
    spent = ledger.spend(held)
    assert (spent.counted, spent.estimated, spent.unknown) == (Decimal("0.07"), 0, ())


@given(st.lists(st.integers(1, 80), min_size=1, max_size=12), st.integers(0, 5))
def test_spend_does_not_depend_on_how_often_it_is_counted(steps: list[int], replicas: int) -> None:
    held, moment = account(), 0
    for step in steps:
        moment += step
        held = accrue(held, moment, own(replicas))
    # A span of more than 90 s at once would be a gap: count it in two.
    once = account()
    for _, second in pairwise([*range(0, moment, 80), moment]):
        once = accrue(once, second, own(replicas))
    assert ledger.spend(held).counted.quantize(Decimal("1e-12")) == ledger.spend(once).counted.quantize(
        Decimal("1e-12")
    )


def test_a_gap_is_bounded_from_above_and_estimated() -> None:
    held = accrue(account(), 3600, own(2, most=8))
    spent = ledger.spend(held)
    assert spent.counted == 0
    assert spent.estimated == Decimal("28.8")
    assert held.entries["own"].estimated_replica_seconds == 8 * 3600
    assert held.entries["own"].replica_seconds == 0


@given(gap=st.integers(91, 7200), before=st.integers(0, 8), after=st.integers(0, 8))
def test_a_gap_never_costs_less_than_what_can_have_run(gap: int, before: int, after: int) -> None:
    held = accrue(accrue(account(), 10, own(before)), 10 + gap, own(after, most=8))
    truth_at_most = Decimal(max(before, after)) * gap * Decimal("3.6") / 3600
    assert ledger.spend(held).estimated >= truth_at_most


def test_what_nobody_knows_of_a_workload_is_charged_at_its_most() -> None:
    held = accrue(account(), 10, own(None, most=4))
    assert ledger.spend(held).estimated == Decimal("0.04")


def test_what_has_no_price_is_unknown_and_not_free() -> None:
    held = accrue(account(), 10, own(2, price=None), provider(reading(10), prices=None))
    spent = ledger.spend(held)
    assert spent.unknown == ("own", "provider")
    assert spent.total == 0
    assert held.entries["own"].cost is None
    assert held.entries["provider"].cost is None


def test_an_unpriced_tier_that_uses_nothing_is_not_unknown() -> None:
    held = accrue(account(), 10, own(0, price=None), provider(reading(10, requests=0), prices=None))
    assert ledger.spend(held).unknown == ()


def test_tokens_cost_their_price_and_cached_input_its_own() -> None:
    held = accrue(account(), 10, provider(reading(10, input_tokens=1e6, cached_input_tokens=4e5, output_tokens=1e5)))
    assert ledger.spend(held).counted == Decimal("1.8") + Decimal("0.12") + Decimal("1.5")


def test_tokens_cost_their_price_though_a_scrape_saw_them_before_their_request() -> None:
    tokens = reading(5, requests=0, with_usage=1)
    early = replace(tokens, requests_with_usage=0.0)
    late = reading(10, requests=1, input_tokens=0.0, output_tokens=0.0)
    held = accrue(accrue(account(), 6, provider(early)), 11, provider(late))
    spent = ledger.spend(held)
    assert (spent.counted, spent.estimated, spent.unknown) == (Decimal("0.0045"), 0, ())


def test_a_reading_counts_once() -> None:
    once = accrue(account(), 10, provider(reading(10)))
    assert accrue(once, 12, provider(reading(10))).entries == once.entries
    twice = accrue(once, 20, provider(reading(15)))
    assert ledger.spend(twice).counted == 2 * ledger.spend(once).counted


def test_what_upstreams_did_not_report_costs_its_bound_and_is_estimated() -> None:
    held = accrue(
        account(),
        10,
        provider(
            reading(
                10,
                requests=10,
                with_usage=8,
                estimated_attempts=5,  # some of them attempts that a retry replaced
                estimated_input_tokens=2e6,
                estimated_output_tokens=1e6,
            )
        ),
    )
    assert ledger.spend(held).estimated == Decimal(2 * 3 + 15)
    assert ledger.spend(held).counted == ledger.spend(accrue(account(), 10, provider(reading(10, requests=8)))).counted
    assert held.entries["provider"].estimated_attempts == 5


def test_requests_without_usage_are_estimated_from_those_with() -> None:
    """An older gateway does not say what they cost at most."""
    held = accrue(account(), 10, provider(reading(10, requests=10, with_usage=8)))
    mean = ledger.spend(held).counted / 8
    assert ledger.spend(held).estimated == charges.USAGE_BOUND * 2 * mean


def test_a_tier_all_of_whose_attempts_were_replaced_is_not_free() -> None:
    given = reading(10, requests=0, estimated_attempts=1, estimated_input_tokens=1e6)
    assert ledger.spend(accrue(account(), 10, provider(given))).estimated == 3
    assert ledger.spend(accrue(account(), 10, provider(given, prices=None))).unknown == ("provider",)


def test_attempts_without_a_bound_are_estimated_from_requests_with_usage() -> None:
    held = accrue(
        account(), 10, provider(reading(10, requests=10, with_usage=8, estimated_attempts=2, unbounded_attempts=2))
    )
    mean = ledger.spend(held).counted / 8
    assert ledger.spend(held).estimated == charges.USAGE_BOUND * 2 * mean


def test_the_mean_does_not_come_from_spend_that_a_checkpoint_brought_back() -> None:
    restored = Account(START, END, NOW, entries={"provider": ledger.Entry(cost=Decimal(1000))})
    given = reading(10, requests=10, with_usage=8, estimated_attempts=2, unbounded_attempts=2)
    held = accrue(restored, 10, provider(given))
    fresh = accrue(account(), 10, provider(given))
    assert ledger.spend(held).estimated == ledger.spend(fresh).estimated


def test_attempts_without_a_bound_and_without_any_to_compare_are_unknown() -> None:
    held = accrue(
        account(), 10, provider(reading(10, requests=5, with_usage=0, estimated_attempts=5, unbounded_attempts=1))
    )
    assert ledger.spend(held).unknown == ("provider",)


def test_a_price_that_changes_rewrites_no_history() -> None:
    held = accrue(accrue(account(), 10, own(1, "3.6")), 20, own(1, "7.2"))
    assert ledger.spend(held).counted == Decimal("0.03")


def test_a_clock_that_goes_back_charges_nothing_twice() -> None:
    held = accrue(account(), 60, own(1))
    assert ledger.spend(accrue(accrue(held, 30, own(1)), 60, own(1))) == ledger.spend(held)


def test_nothing_is_charged_past_the_end_of_the_period() -> None:
    last = Account(START, END, END - timedelta(seconds=10))
    held = ledger.accrue(last, [own(1)], END + timedelta(seconds=30), max_gap_seconds=90)
    assert held.entries["own"].replica_seconds == 10
