import random

import pytest

from tierwise.core import capacity
from tierwise.core.capacity import Capacity, Objective, Observation
from tierwise.core.signals import Missing, Reading, TierSignals

IDLE, SATURATION = 0.010, 2000.0


def seen(load, *, noise=0.0, dice=None, waiting=0.0, factor=1.0):
    """What an engine with `ITL = a / (1 - rho)` shows at a load in work units/s per replica."""
    spread = 1 + noise * dice.gauss(0, 1) if dice is not None else 1.0
    itl = IDLE / (1 - load / SATURATION) * spread
    return Observation(load, itl, 1.15 * itl * factor, 0.2 / (1 - load / SATURATION), waiting, load * itl)


@pytest.mark.parametrize("prior", [0.5, 0.7, 1.4, 2.0])
def test_a_wrong_prior_is_corrected(prior):
    dice = random.Random(3)
    known = Capacity(prior * SATURATION)
    for step in range(80):
        load = SATURATION * (0.35 + 0.25 * ((step % 20) / 20))
        known = capacity.learn(known, seen(load, noise=0.05, dice=dice), [Objective()])
    assert known.saturation == pytest.approx(SATURATION, rel=0.15)
    assert known.idle_inter_token_seconds == pytest.approx(IDLE, rel=0.15)
    assert known.provenance == "measured"


def test_one_outlier_moves_the_estimate_a_bounded_amount():
    known = Capacity(SATURATION, idle_inter_token_seconds=IDLE)
    after = capacity.learn(known, Observation(1000.0, 10.0, None, None, 0.0, 50.0), [])
    assert SATURATION / 1.16 <= after.saturation <= SATURATION * 1.16


def test_nothing_is_learnt_from_an_idle_replica():
    known = Capacity(SATURATION, idle_inter_token_seconds=IDLE)
    for _ in range(20):
        known = capacity.learn(known, Observation(0.0, None, None, None, 0.0, 0.0), [Objective(0.5, 0.05)])
    assert known.saturation == SATURATION
    assert known.margin == 1.0
    assert known.provenance == "declared"


def test_a_standing_queue_bounds_the_capacity_at_the_throughput_seen():
    known = Capacity(4000.0, idle_inter_token_seconds=IDLE)
    for _ in range(6):
        known = capacity.learn(known, seen(1500.0, waiting=30.0), [])
    assert known.queue_limit is not None
    assert known.saturation * capacity.utilisation_limit(known, Objective()) <= 1500.0


def test_a_queue_limit_is_lifted_by_evidence():
    known = Capacity(2000.0, idle_inter_token_seconds=IDLE, queue_limit=500.0)
    for _ in range(30):
        known = capacity.learn(known, seen(900.0), [])
    assert known.queue_limit is None or known.queue_limit >= 900.0


def test_an_objective_that_is_breached_at_a_safe_load_lowers_the_margin_and_it_recovers():
    known = Capacity(SATURATION, idle_inter_token_seconds=IDLE)
    objective = Objective(inter_token_seconds=0.03)
    for _ in range(10):
        known = capacity.learn(known, seen(900.0, factor=3.0), [objective])
    assert known.margin < 0.7
    for _ in range(120):
        known = capacity.learn(known, seen(900.0), [objective])
    assert known.margin == 1.0


def test_a_tier_that_is_too_slow_when_idle_meets_the_objective_at_no_load():
    known = Capacity(SATURATION, idle_inter_token_seconds=0.050)
    assert capacity.utilisation_limit(known, Objective(inter_token_seconds=0.04)) == 0.0
    assert capacity.utilisation_limit(known, Objective(inter_token_seconds=0.2)) > 0.5


def test_missing_signals_give_no_observation():
    assert capacity.observe(TierSignals(), 2, max_age_seconds=60) is None
    stale = TierSignals(
        running=Reading(3, 100), generation_token_rate=Reading(300, 100), prompt_token_rate=Reading(100, 100)
    )
    assert capacity.observe(stale, 2, max_age_seconds=60) is None


def test_inter_token_time_follows_from_littles_law_when_no_histogram_tells():
    signals = TierSignals(
        running=Reading(6, 1), generation_token_rate=Reading(300, 1), prompt_token_rate=Reading(100, 1),
        ready_replicas=Reading(2, 1), inter_token_mean_seconds=Missing("no series"),
    )  # fmt: skip
    found = capacity.observe(signals, 2, max_age_seconds=60)
    assert found.inter_token_seconds == pytest.approx(0.02)
    assert found.work_rate == pytest.approx((300 + 0.3 * 100) / 2)


def test_long_single_gaps_are_no_slow_requests():
    """What an engine with prefills between its tokens shows: 5% of gaps are long, the mean of a request is not."""
    signals = TierSignals(
        running=Reading(20.0, 1.0),
        prompt_token_rate=Reading(1000.0, 1.0),
        generation_token_rate=Reading(500.0, 1.0),
        inter_token_p95_seconds=Reading(0.15, 1.0),
        inter_token_mean_seconds=Reading(0.04, 1.0),
    )
    seen = capacity.observe(signals, 1, max_age_seconds=60)
    assert seen is not None
    assert seen.inter_token_p95_seconds == pytest.approx(capacity.TAIL_FACTOR * 0.04)
    known = capacity.learn(Capacity(SATURATION, idle_inter_token_seconds=0.03), seen, [Objective(2.0, 0.1)])
    assert known.margin == 1.0


def test_windows_that_overlap_count_once_together():
    slow = Observation(1000.0, 0.02, 0.12, 0.3, 0.0, 20.0)
    known = Capacity(SATURATION, idle_inter_token_seconds=IDLE)
    at_once = capacity.learn(known, slow, [Objective(2.0, 0.1)])
    for _ in range(4):
        known = capacity.learn(known, slow, [Objective(2.0, 0.1)], news=0.25)
    assert at_once.margin == pytest.approx(0.95)
    assert known.margin == pytest.approx(at_once.margin)


def limited(load):
    """What an engine with a limit of sequences shows: an even inter-token time, whatever the load, until it queues."""
    return Observation(load, 0.035, 1.15 * 0.035, 0.1, 0.0, load * 0.035)


def test_an_even_inter_token_time_at_small_loads_says_nothing_of_large_ones():
    known = Capacity(700.0)
    for _ in range(60):
        known = capacity.learn(known, limited(300.0), [Objective(2.0, 0.1)])
    assert known.saturation <= 700.0


def test_a_queue_is_believed_though_the_saturation_was_thought_ten_times_as_high():
    known = Capacity(7000.0, idle_inter_token_seconds=0.035)
    for _ in range(3):
        known = capacity.learn(known, limited(300.0), [])
    for _ in range(3):
        known = capacity.learn(known, Observation(600.0, 0.035, 0.04, 6.0, 20.0, 32.0), [])
    assert known.saturation * capacity.utilisation_limit(known, Objective(2.0, 0.1)) <= 600.0


def test_a_queue_never_bounds_below_what_was_carried_without_one_a_moment_ago():
    known = Capacity(2000.0, idle_inter_token_seconds=IDLE)
    for _ in range(5):
        known = capacity.learn(known, seen(900.0), [])
    for _ in range(3):
        known = capacity.learn(known, seen(300.0, waiting=30.0), [])
    assert known.queue_limit is not None
    assert known.queue_limit >= 0.95 * 900.0 * 0.9


def test_a_replica_that_is_overloaded_at_first_sight_is_not_taken_for_a_slow_one():
    """A declared capacity far too high sends it too much: what is seen first is slow, which would rule it out."""
    objective = Objective(inter_token_seconds=0.03)
    known = capacity.learn(Capacity(20 * SATURATION), seen(0.9 * SATURATION), [objective])
    assert capacity.utilisation_limit(known, objective) > 0
    for _ in range(30):
        known = capacity.learn(known, seen(0.5 * SATURATION), [objective])
    assert known.idle_inter_token_seconds == pytest.approx(IDLE, rel=0.2)
    assert capacity.utilisation_limit(known, objective) > 0.4


def test_an_estimate_that_rules_a_tier_out_fades_while_nothing_is_sent_there():
    objective = Objective(inter_token_seconds=0.03)
    known = Capacity(SATURATION, idle_inter_token_seconds=0.12, idle_ttft_seconds=1.0)
    assert capacity.utilisation_limit(known, objective) == 0
    idle = Observation(0.0, None, None, None, 0.0, 0.0)
    for _ in range(60):
        known = capacity.learn(known, idle, [objective])
    assert capacity.utilisation_limit(known, objective) > 0, "it is tried again"
    kept = Capacity(SATURATION, idle_inter_token_seconds=IDLE)
    assert capacity.learn(kept, idle, [objective]).idle_inter_token_seconds == IDLE, "what may be used is not forgotten"
