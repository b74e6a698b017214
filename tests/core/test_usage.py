"""Usage is money: no sample is counted twice, none is lost, restarts and new series are told apart from old ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import usage

TIER = ("team-a", "compact")


def series(*samples, quantity=usage.OUTPUT_TOKENS, identity="a", instance="envoy-0", namespace="team-a"):
    return usage.CounterSeries(quantity, namespace, "compact", identity, instance, samples)


def instances(first, newest, start=None, name="envoy-0"):
    return {name: (first, newest, start)}


def read(found, cursor, gateways, tiers=(TIER,)):
    readings, after = usage.read(found, cursor, tiers=tiers, instances=gateways)
    return readings, after


def test_first_read_counts_nothing_and_sets_the_baseline():
    readings, cursor = read([series((10.0, 500.0))], usage.Cursor(), instances(10, 10))
    assert readings == {}
    readings, _ = read([series((10.0, 500.0), (15.0, 530.0))], cursor, instances(10, 15))
    assert readings[TIER].output_tokens == 30.0
    assert readings[TIER].since.timestamp() == 10.0
    assert readings[TIER].until.timestamp() == 15.0


def test_a_series_born_after_the_last_read_counts_from_zero():
    _, cursor = read([series((10.0, 5.0))], usage.Cursor(), instances(0, 10))
    born = series((15.0, 700.0), identity="b")
    readings, _ = read([series((10.0, 5.0), (15.0, 5.0)), born], cursor, instances(0, 15))
    assert readings[TIER].output_tokens == 700.0


def test_a_series_of_a_gateway_first_seen_now_that_ran_before_is_only_a_baseline():
    _, cursor = read([series((100.0, 5.0))], usage.Cursor(), instances(100, 100))
    late = series((110.0, 9_000.0), identity="b", instance="envoy-1")
    gateways = instances(100, 110) | instances(110, 110, start=2.0, name="envoy-1")
    readings, cursor = read([series((100.0, 5.0), (110.0, 6.0)), late], cursor, gateways)
    assert readings[TIER].output_tokens == 1.0
    late = series((110.0, 9_000.0), (115.0, 9_004.0), identity="b", instance="envoy-1")
    readings, _ = read([late], cursor, instances(110, 115, start=2.0, name="envoy-1"))
    assert readings[TIER].output_tokens == 4.0


def test_a_gateway_that_started_after_the_last_read_counts_whole():
    _, cursor = read([series((100.0, 5.0))], usage.Cursor(), instances(100, 100))
    new = series((110.0, 42.0), identity="b", instance="envoy-1")
    readings, _ = read([new], cursor, instances(110, 110, start=104.0, name="envoy-1"))
    assert readings[TIER].output_tokens == 42.0


def test_a_restart_counts_what_came_after_it():
    _, cursor = read([series((10.0, 100.0))], usage.Cursor(), instances(10, 10))
    again = series((10.0, 100.0), (15.0, 140.0), (20.0, 7.0), (25.0, 9.0))
    readings, _ = read([again], cursor, instances(10, 25))
    assert readings[TIER].output_tokens == 40.0 + 7.0 + 2.0


def test_no_gateway_scraped_is_no_reading_and_traffic_is_counted_later():
    _, cursor = read([series((10.0, 100.0))], usage.Cursor(), instances(10, 10))
    readings, cursor = read([], cursor, {})
    assert readings == {}
    readings, _ = read([series((500.0, 160.0))], cursor, instances(500, 500))
    assert readings[TIER].output_tokens == 60.0


def test_gateway_scraped_without_traffic_is_a_measured_zero():
    _, cursor = read([], usage.Cursor(), instances(10, 10))
    readings, _ = read([], cursor, instances(10, 20))
    assert readings[TIER].output_tokens == 0.0
    assert readings[TIER].requests == 0.0


def test_a_restored_ledger_counts_from_its_checkpoint_per_namespace():
    samples = ((100.0, 10.0), (200.0, 20.0), (300.0, 70.0))
    cursor = usage.Cursor(since={"team-a": 200.0})
    found = [series(*samples), series(*samples, identity="b", namespace="team-b")]
    readings, _ = read(found, cursor, instances(100, 300), tiers=(TIER, ("team-b", "compact")))
    assert readings[TIER].output_tokens == 50.0
    assert ("team-b", "compact") not in readings, "its ledger starts now"


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=60),
    st.lists(st.integers(1, 10), min_size=1, max_size=20),
)
def test_any_split_into_reads_counts_the_same(increments, cuts):
    """However the reads fall, the sum is the sum of all increments (with restarts at scrape boundaries)."""
    samples = [(0.0, 0.0)]
    expected = 0
    value = 0
    for index, (grown, restarted) in enumerate(increments, start=1):
        if restarted and grown < value:
            value = grown
        else:
            value += grown
        expected += grown
        samples.append((float(index), float(value)))
    _, cursor = read([series(samples[0])], usage.Cursor(), instances(0, 0))
    total = 0.0
    position = 1
    cut = 0
    while position < len(samples):
        step = cuts[cut % len(cuts)]
        cut += 1
        window = samples[max(0, position - 2) : position + step]
        position += step
        readings, cursor = read([series(*window)], cursor, instances(window[0][0], window[-1][0]))
        total += readings[TIER].output_tokens
    assert total == pytest.approx(expected)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=30))
def test_reading_the_same_samples_again_counts_nothing(values):
    total = 0
    samples = []
    for index, value in enumerate(values):
        total += value
        samples.append((float(index), float(total)))
    _, cursor = read([series(samples[0])], usage.Cursor(), instances(0, 0))
    _, cursor = read([series(*samples)], cursor, instances(0, samples[-1][0]))
    readings, _ = read([series(*samples)], cursor, instances(0, samples[-1][0]))
    assert readings[TIER].output_tokens == 0.0


def test_every_quantity_arrives_under_its_name_and_adds_up():
    before = [series((10.0, 5.0), quantity=name, identity=name) for name in usage.QUANTITIES]
    _, cursor = read(before, usage.Cursor(), instances(0, 10))
    after = [
        series((10.0, 5.0), (15.0, 6.0 + number), quantity=name, identity=name)
        for number, name in enumerate(usage.QUANTITIES)
    ]
    readings, _ = read(after, cursor, instances(0, 15))
    twice = usage.add(readings[TIER], readings[TIER])
    for number, name in enumerate(usage.QUANTITIES):
        assert getattr(readings[TIER], name) == 1 + number
        assert getattr(twice, name) == 2 + 2 * number
