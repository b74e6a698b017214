import random
from datetime import UTC, datetime, timedelta

import pytest

from tierwise.core import demand
from tierwise.core.demand import History, Measured, Sample
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


def test_the_level_follows_slowly_within_what_the_last_minutes_saw():
    step = history([8.0] * 120 + [2.0] * 60)
    # Five minutes of 2.0 are in, and some of 8.0 are still within the last ten: the level is on its way.
    assert 2.0 < demand.forecast(step, window_seconds=60, lead_seconds=10).level < 8.0
    assert demand.forecast(history([8.0] * 120 + [2.0] * 121), window_seconds=60, lead_seconds=10).level == 2.0
    noisy = demand.forecast(history([3.0, 5.0] * 100), window_seconds=60, lead_seconds=10)
    assert noisy.level == noisy.ahead
    assert 3.5 < noisy.level < 4.5


def test_a_windows_busiest_seconds_are_kept_with_their_share_of_the_requests():
    made = demand.remember(History(), Measured(NOW, 2.0, peak=6.0, window_seconds=60.0))
    assert made.samples == (Sample(NOW, 2.0, 6.0, 0.5, 2.0),)
    unknown = demand.remember(History(), Measured(NOW, 2.0))
    assert unknown.samples[0].peak == 2.0


def test_old_samples_are_thinned_and_the_busier_of_two_stays():
    made = History()
    for number in range(720):
        peak = 30.0 if number == 100 else 4.0
        made = demand.remember(made, Measured(NOW + timedelta(seconds=5 * number), 4.0, peak=peak))
    assert len(made.samples) <= demand.MAX_SAMPLES
    assert made.samples[0].time <= NOW + timedelta(seconds=15)
    assert max(sample.peak for sample in made.samples) == 30.0
    late = [sample.time for sample in made.samples if sample.time > made.samples[-1].time - timedelta(seconds=120)]
    assert len(late) == 24
    later = demand.remember(made, Measured(NOW + timedelta(hours=2), 4.0))
    assert [sample.time for sample in later.samples] == [made.samples[-1].time, NOW + timedelta(hours=2)]


def test_a_short_history_is_not_settled():
    made = history([1.0] * 5)
    assert not demand.forecast(made, window_seconds=60, lead_seconds=10).settled
    assert demand.forecast(made, window_seconds=20, lead_seconds=10).settled


def test_a_jump_is_believed_at_once_and_a_wobble_is_not():
    assert demand.forecast(history([4.0, 4.0, 4.0, 12.0]), window_seconds=60, lead_seconds=10).present == 12.0
    assert demand.forecast(history([4.0, 4.0, 4.0, 4.8]), window_seconds=60, lead_seconds=10).present < 4.5


def test_a_steady_climb_is_extrapolated_over_the_start_up_and_capped():
    climb = history([1.0 + 0.5 * n for n in range(12)])
    found = demand.forecast(climb, window_seconds=60, lead_seconds=20)
    assert found.level < found.ahead <= 1.2 * found.level
    wobble = demand.forecast(history([4.0, 4.2, 3.9] * 5), window_seconds=60, lead_seconds=20)
    assert wobble.ahead == wobble.level


def test_tokens_of_a_tier_are_its_own_where_known():
    seen = Measured(NOW, 2.0, tokens={"a": (100.0, 50.0)}, rates={"a": 2.0})
    made = demand.remember(History(), seen, keep_seconds=600)
    found = demand.forecast(made, window_seconds=60, lead_seconds=10)
    assert found.tokens_on("a") == (100.0, 50.0)
    assert found.tokens_on("b") == (100.0, 50.0)
    assert found.tokens_known


def tokens_after(windows):
    history = History()
    for number, tokens in enumerate(windows):
        rates = dict.fromkeys(tokens, 1.0)
        seen = Measured(NOW + timedelta(seconds=60 * number), float(len(tokens)), tokens=tokens, rates=rates)
        history = demand.remember(history, seen)
    return history.tokens


def test_tokens_of_a_tier_without_requests_follow_those_of_the_others():
    both = [{"a": (100.0, 300.0), "b": (100.0, 600.0)}] * 20
    found = tokens_after([*both, *[{"a": (200.0, 450.0)}] * 40])
    assert found["b"] == pytest.approx((200.0, 900.0), rel=1e-3)
    # Back again, nothing is left of the way there.
    back = tokens_after([*both, *[{"a": (200.0, 450.0)}] * 40, *[{"a": (100.0, 300.0)}] * 40])
    assert back["b"] == pytest.approx((100.0, 600.0), rel=1e-3)


def test_they_do_not_drift_and_odd_answers_price_no_tier_out():
    source = random.Random(3)
    both = [{"a": (100.0, 300.0), "b": (100.0, 600.0), "c": (100.0, 300.0)}] * 20

    def noisy():
        return {tier: (100.0, 300.0 * source.lognormvariate(0, 0.3)) for tier in source.sample(["a", "c"], 2)}

    drifted = tokens_after([*both, *(noisy() for _ in range(3000))])["b"][1]
    assert 400 < drifted < 900
    silent = tokens_after([*both, *[{"a": (100.0, 0.0)}] * 60])["b"][1]
    assert silent >= 200
    long = tokens_after([*both, *[{"a": (100.0, 30000.0)}] * 60])["b"][1]
    assert long <= 1800
    # Nobody tells of a tier that never was beside another.
    assert tokens_after([{"b": (100.0, 600.0)}, {"a": (500.0, 900.0)}])["b"] == (100.0, 600.0)
