from datetime import UTC, datetime, timedelta

from tierwise.core import demand
from tierwise.core.demand import History, Measured
from tierwise.core.signals import ClassSignals, Missing, Reading, Signals

NOW = datetime(2026, 11, 25, 9, tzinfo=UTC)
KEY = ("ns", "p", "c")


def ask(**fields):
    return demand.measure(KEY, Signals(time=NOW, **fields), max_age_seconds=30)


def test_no_series_is_zero_only_where_a_gateway_was_scraped():
    assert ask(gateways_up=Reading(1, 1)).rate == 0.0
    assert isinstance(ask(), Missing)
    assert isinstance(ask(gateways_up=Reading(0, 1)), Missing)
    assert isinstance(ask(gateways_up=Reading(1, 99)), Missing)


def test_an_error_a_stale_or_a_missing_rate_is_never_zero():
    up = Reading(1, 1)
    assert isinstance(ask(error="time-out", gateways_up=up), Missing)
    for rate in (Reading(3, 31), Missing("NaN")):
        assert isinstance(ask(classes={KEY: {"a": ClassSignals(request_rate=rate)}}, gateways_up=up), Missing)


def test_flat_counters_are_a_measured_zero():
    assert ask(classes={KEY: {"a": ClassSignals(request_rate=Reading(0, 1))}}).rate == 0.0


def test_one_missing_tier_makes_the_class_missing():
    by_tier = {"a": ClassSignals(request_rate=Reading(3, 1)), "b": ClassSignals(request_rate=Missing("no samples"))}
    assert isinstance(ask(classes={KEY: by_tier}), Missing)


def history(rates, step=5):
    made = History()
    for number, rate in enumerate(rates):
        made = demand.remember(made, Measured(NOW + timedelta(seconds=step * number), rate), keep_seconds=600)
    return made


def test_the_same_answer_counts_once():
    made = history([1.0, 2.0])
    assert demand.remember(made, Measured(NOW + timedelta(seconds=5), 9.0), keep_seconds=600) == made


def test_the_peak_holds_for_the_window_and_then_goes():
    up = history([8.0] * 5 + [1.0] * 5)
    assert demand.forecast(up, window_seconds=60, lead_seconds=10).peak == 8.0
    assert demand.forecast(up, window_seconds=20, lead_seconds=10).peak < 2.0


def test_a_short_history_is_not_settled():
    made = history([1.0] * 5)
    assert not demand.forecast(made, window_seconds=60, lead_seconds=10).settled
    assert demand.forecast(made, window_seconds=20, lead_seconds=10).settled


def test_a_jump_is_believed_at_once_and_a_wobble_is_not():
    assert demand.forecast(history([4.0, 4.0, 4.0, 12.0]), window_seconds=60, lead_seconds=10).peak == 12.0
    assert demand.forecast(history([4.0, 4.0, 4.0, 4.8]), window_seconds=60, lead_seconds=10).peak < 4.5


def test_a_steady_climb_is_extrapolated_over_the_start_up_and_capped():
    climb = history([1.0 + 0.5 * n for n in range(12)])
    found = demand.forecast(climb, window_seconds=60, lead_seconds=20)
    assert found.peak < found.ahead <= 1.5 * found.peak
    assert demand.forecast(history([4.0, 4.2, 3.9] * 5), window_seconds=60, lead_seconds=20).ahead < 4.3


def test_tokens_of_a_tier_are_its_own_where_known():
    seen = Measured(NOW, 2.0, tokens={"a": (100.0, 50.0)}, rates={"a": 2.0})
    made = demand.remember(History(), seen, keep_seconds=600)
    found = demand.forecast(made, window_seconds=60, lead_seconds=10)
    assert found.tokens_on("a") == (100.0, 50.0)
    assert found.tokens_on("b") == (100.0, 50.0)
    assert found.tokens_known
