"""What gateways lose when they end is bounded, and nothing else is lost: whatever restarts, and however reads fall."""

from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import usage
from tierwise.core.signals import Origin

TIER = ("team-a", "compact")


def series(*samples, identity="a", instance="envoy-0", **more):
    return usage.CounterSeries(usage.OUTPUT_TOKENS, "team-a", "compact", identity, instance, samples, **more)


def seen(uptimes):
    return {name: (each[0][0], each[-1][0], each[-1][0] - each[-1][1]) for name, each in uptimes.items() if each}


def read(found, cursor, uptimes):
    return usage.read(found, cursor, tiers=(TIER,), instances=seen(uptimes), uptimes=uptimes)


def test_a_restart_within_a_gap_in_scraping_is_told_by_the_uptime():
    """The counter has passed its old value again: by itself it says nothing."""
    _, cursor = read([series((100.0, 50.0))], usage.Cursor(), {"envoy-0": [(100.0, 900.0)]})
    readings, _ = read([series((700.0, 80.0))], cursor, {"envoy-0": [(700.0, 300.0)]})
    assert readings[TIER].output_tokens == 80.0
    assert (readings[TIER].crashes, readings[TIER].lost_seconds) == (1, 600.0)


def test_a_series_that_comes_back_long_after_its_gateway_did_counts_from_zero():
    """Nobody used this class for a while: by then the counter has passed its old value."""
    _, cursor = read([series((100.0, 50.0))], usage.Cursor(), {"envoy-0": [(100.0, 900.0)]})
    readings, cursor = read([], cursor, {"envoy-0": [(115.0, 4.0)]})
    assert (readings[TIER].output_tokens, readings[TIER].crashes) == (0.0, 1)
    _, cursor = read([], cursor, {"envoy-0": [(130.0, 19.0)]})
    readings, cursor = read([series((145.0, 80.0))], cursor, {"envoy-0": [(145.0, 34.0)]})
    assert (readings[TIER].output_tokens, readings[TIER].crashes) == (80.0, 0)
    readings, _ = read([series((145.0, 80.0), (160.0, 95.0))], cursor, {"envoy-0": [(160.0, 49.0)]})
    assert readings[TIER].output_tokens == 15.0


def test_a_gap_in_scraping_alone_is_no_restart():
    _, cursor = read([series((100.0, 50.0))], usage.Cursor(), {"envoy-0": [(100.0, 900.0)]})
    readings, _ = read([series((700.0, 80.0))], cursor, {"envoy-0": [(700.0, 1496.0)]})
    assert readings[TIER].output_tokens == 30.0
    assert readings[TIER].crashes == 0


def test_a_gateway_of_several_loses_one_scrape_interval_when_it_restarts():
    up = {"envoy-0": [(float(t), 500.0 + t) for t in range(0, 60, 5)], "envoy-1": [(2.0, 90.0), (47.0, 3.0)]}
    _, cursor = read([], usage.Cursor(), {name: each[:1] for name, each in up.items()})
    readings, cursor = read([], cursor, up)
    assert (readings[TIER].crashes, readings[TIER].lost_seconds) == (1, 5.0)
    readings, _ = read([], cursor, {"envoy-0": [(60.0, 560.0)], "envoy-1": [(62.0, 18.0)]})
    assert readings[TIER].crashes == 0, "told once"


def test_a_gateway_that_dies_while_nobody_scrapes_may_have_counted_until_somebody_does():
    """That another one is scraped a moment earlier when Prometheus is back does not say that this one was dead."""
    before = {
        "envoy-0": [(float(t), 500.0 + t) for t in range(0, 60, 5)],
        "envoy-1": [(t + 2.0, 90.0 + t) for t in range(0, 60, 5)],
    }
    _, cursor = read([], usage.Cursor(), before)
    _, cursor = read([], cursor, before)
    back = {"envoy-0": [(655.0, 1155.0), (660.0, 1160.0)], "envoy-1": [(657.0, 40.0), (662.0, 45.0)]}
    readings, cursor = read([], cursor, back)
    assert (readings[TIER].crashes, readings[TIER].lost_seconds) == (1, 600.0)


def test_a_gateway_that_is_gone_for_good_when_somebody_scrapes_again_may_have_counted_until_then():
    before = {"envoy-0": [(float(t), 500.0 + t) for t in range(0, 60, 5)], "envoy-1": [(57.0, 147.0)]}
    _, cursor = read([], usage.Cursor(), before)
    found = []
    for start in (655, 700, 760, 820, 880, 940, 1000):
        readings, cursor = read([], cursor, {"envoy-0": [(float(t), 500.0 + t) for t in range(start, start + 60, 5)]})
        found.append((readings[TIER].crashes, readings[TIER].lost_seconds))
    assert [one for one in found if one[0]] == [(1, 603.0)]


def test_a_restart_that_the_next_read_sees_again_is_told_once():
    """Reads reach back beyond the last one."""
    samples = [(float(t), 500.0 + t) for t in range(0, 20, 5)] + [(20.0, 2.0), (25.0, 7.0), (30.0, 12.0), (35.0, 17.0)]
    _, cursor = read([], usage.Cursor(), {"envoy-0": samples[:2]})
    crashes = []
    for until in (6, 7, 8):
        readings, cursor = read([], cursor, {"envoy-0": samples[:until]})
        crashes.append(readings[TIER].crashes)
    assert crashes == [1, 0, 0]


def test_a_gateway_that_does_not_come_back_is_told_once():
    _, cursor = read([], usage.Cursor(), {"envoy-0": [(0.0, 90.0)], "envoy-1": [(1.0, 90.0)]})
    crashes = []
    for moment in (100.0, 200.0, 400.0, 500.0, 900.0):
        readings, cursor = read([], cursor, {"envoy-0": [(moment - 5, 85.0 + moment), (moment, 90.0 + moment)]})
        crashes.append(readings[TIER].crashes)
    assert crashes == [0, 0, 1, 0, 0]


def test_a_gateway_that_started_just_before_the_last_read_and_was_not_scraped_yet_counts_whole():
    _, cursor = read([], usage.Cursor(), {"envoy-0": [(100.0, 900.0)]})
    up = {"envoy-0": [(100.0, 900.0), (115.0, 915.0)], "envoy-1": [(112.0, 15.0)]}
    readings, _ = read([series((112.0, 9.0), instance="envoy-1")], cursor, up)
    assert readings[TIER].output_tokens == 9.0


def test_origins_add_up_and_pieces_stay():
    ours, theirs = Origin("p", "c", "a"), Origin("p", "c", "b")
    found = [series((0.0, 0.0), (5.0, 3.0), origin=ours), series((0.0, 0.0), (5.0, 4.0), identity="b", origin=theirs)]
    _, cursor = read([], usage.Cursor(), {"envoy-0": [(0.0, 9.0)]})
    readings, cursor = read(found, cursor, {"envoy-0": [(0.0, 9.0), (5.0, 14.0)]})
    assert {o: c.output_tokens for o, c in readings[TIER].parts.items()} == {ours: 3.0, theirs: 4.0}
    twice = usage.add(readings[TIER], readings[TIER])
    assert {o: c.output_tokens for o, c in twice.parts.items()} == {ours: 6.0, theirs: 8.0}
    assert twice.output_tokens == 14.0
    assert twice.pieces == (readings[TIER], readings[TIER])


def test_readings_that_nobody_counts_stay_bounded():
    one = usage.read(
        [series((0.0, 0.0), (5.0, 3.0))],
        usage.Cursor(time=0.0, last={"a": (0.0, 0.0)}),
        tiers=(TIER,),
        instances={"envoy-0": (0.0, 5.0, None)},
    )[0][TIER]
    total = one
    for _ in range(usage.MAX_PIECES + 50):
        total = usage.add(total, one)
    assert len(total.pieces) == usage.MAX_PIECES
    assert sum(piece.output_tokens for piece in total.pieces) == total.output_tokens


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 60), st.sampled_from(["", "", "", "restart", "outage"])), min_size=2, max_size=25
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
)
def test_several_gateways_that_restart_and_are_not_scraped_at_times(lives, cuts):
    """Each gateway counts, restarts after a scrape, or is not scraped; the sum is what they counted, in any split.

    A restart here comes right after a scrape, so that nothing is lost with it.
    """
    step, length = 60.0, max(map(len, lives))
    scrapes = {}
    expected = 0
    for number, life in enumerate(lives):
        value, born = 0.0, -1000.0
        scrapes[f"g{number}"] = found = [(0.0, 0.0, 1000.0)]
        pending = 0
        for index in range(1, length + 1):
            grown, what = life[index - 1] if index <= len(life) else (0, "")
            time = index * step
            if what == "restart" and pending == 0:
                value, born = 0.0, time - step + 20
            value += grown
            pending += grown
            if what != "outage" or index >= len(life):
                found.append((time, value, time - born))
                expected += pending
                pending = 0
    cursor = usage.Cursor()
    total, position, cut = 0.0, 0, 0
    while position <= length:
        window = cuts[cut % len(cuts)] if position else 1
        cut += 1
        low, high = (position - 2) * step, (position + window - 1) * step
        rows, up = [], {}
        for name, found in scrapes.items():
            inside = [one for one in found if low <= one[0] <= high]
            if inside:
                rows.append(series(*((t, v) for t, v, _ in inside), identity=name, instance=name))
                up[name] = [(t, u) for t, _, u in inside]
        readings, cursor = read(rows, cursor, up)
        total += readings[TIER].output_tokens if TIER in readings else 0.0
        position += window
    assert total == expected
