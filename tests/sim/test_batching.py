"""Continuous batching: order, limits, accounting, aborts, and that skipping ahead changes nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.sim.batching import Batcher, Hooks, Sequence
from tierwise.sim.replica import ReplicaParams

PARAMS = ReplicaParams(a_ms=10, b_ms=1, g_ms=0.5, p0_ms=5, p1_ms=20, p2_ms=2, kv_tokens=5000, max_sequences=4)


def test_one_request_alone_by_hand():
    gaps = []
    batcher = Batcher(PARAMS, Hooks(tokens=lambda seconds, count: gaps.append((seconds, count))))
    sequence = Sequence(1000, 3, 7.0)
    batcher.submit(sequence)
    assert batcher.running == 1
    assert batcher.next_boundary_seconds == pytest.approx(7.027)
    batcher.advance(7.026)
    assert batcher.emitted(sequence) == 0
    batcher.advance(7.028)
    assert batcher.emitted(sequence) == 1
    assert sequence.ttft_seconds == pytest.approx(0.027)
    batcher.advance(8.0)
    # One sequence at context 1001, then 1002: 10 + 1 + 0.5 * ctx/1000.
    assert [count for _, count in gaps] == [1, 1]
    assert [seconds for seconds, _ in gaps] == pytest.approx([0.0115005, 0.011501])
    assert sequence.finished_seconds == pytest.approx(7.0500015)
    assert (batcher.outstanding, batcher.context_tokens, batcher.next_boundary_seconds) == (0, 0, None)


def test_a_prefill_blocks_decoding_and_counts_in_the_gap():
    gaps = []
    batcher = Batcher(PARAMS, Hooks(tokens=lambda seconds, count: gaps.append((round(seconds, 6), count))))
    first = Sequence(100, 50, 0.0)
    batcher.submit(first)
    batcher.advance(0.1)
    before = batcher.emitted(first)
    batcher.submit(Sequence(1000, 5, 0.1))
    gaps.clear()
    batcher.advance(0.15)
    prefill = PARAMS.prefill_ms(1000) / 1e3
    assert max(seconds for seconds, _ in gaps) > prefill
    # Right after the prefill, the old one waited through it and the new one did not.
    joined = [count for _, count in gaps if count == 1]
    assert len(joined) >= 2
    assert batcher.emitted(first) > before


def test_limits_of_sequences_and_cache_hold_back_in_order():
    batcher = Batcher(PARAMS)
    sequences = [Sequence(100, 100, 0.0) for _ in range(6)]
    for sequence in sequences:
        batcher.submit(sequence)
    batcher.advance(0.2)
    assert (batcher.running, batcher.waiting) == (4, 2)
    batcher.advance(100.0)
    assert all(sequence.finished_seconds is not None for sequence in sequences)
    assert sequences[4].first_token_seconds > sequences[0].finished_seconds
    big = Batcher(PARAMS)
    one, two = Sequence(3000, 10, 0.0), Sequence(2500, 10, 0.0)
    big.submit(one)
    big.submit(two)
    big.advance(100.0)
    assert two.admitted_seconds >= one.finished_seconds


def test_a_prompt_larger_than_the_cache_still_runs_alone():
    batcher = Batcher(PARAMS)
    huge = Sequence(9000, 2, 0.0)
    batcher.submit(huge)
    batcher.advance(100.0)
    assert huge.finished_seconds is not None
    assert batcher.kv_usage == 0.0


@pytest.mark.parametrize("moment", ["waiting", "prefilling", "decoding", "finished"])
def test_an_abort_frees_the_place(moment):
    batcher = Batcher(PARAMS, Hooks(tokens=lambda *_: None))
    running = Sequence(100, 200, 0.0)
    batcher.submit(running)
    batcher.advance(0.05)
    other = Sequence(1000, 50, 0.05)
    batcher.submit(other)
    if moment == "prefilling":
        batcher.advance(other.arrival_seconds + 0.013)
        assert other.admitted_seconds is not None
    elif moment == "decoding":
        batcher.advance(0.3)
        assert batcher.emitted(other) > 1
    elif moment == "finished":
        batcher.advance(50.0)
    batcher.abort(other)
    batcher.abort(other)
    batcher.advance(100.0)
    assert (batcher.outstanding, batcher.context_tokens, batcher._reserved) == (0, 0, 0)
    assert running.finished_seconds is not None
    assert (other.finished_seconds is None) == (moment != "finished")


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 2000), st.integers(1, 120)), min_size=1, max_size=25),
    seed=st.integers(0, 1000),
)
def test_skipping_ahead_gives_the_same_times(arrivals, seed):
    def run(hooks, step):
        batcher = Batcher(PARAMS, hooks)
        sequences = []
        source = random.Random(seed)
        for at, prompt, output in sorted(arrivals):
            batcher.advance(at)
            sequence = Sequence(prompt, output, at)
            batcher.submit(sequence)
            sequences.append(sequence)
            batcher.advance(at + step * source.random())
        batcher.advance(1e5)
        return [(s.first_token_seconds, s.finished_seconds) for s in sequences], batcher.steps

    tokens = []
    slow, steps = run(Hooks(tokens=lambda _, count: tokens.append(count)), 0.0)
    fast, fast_steps = run(Hooks(), 0.0)
    assert steps == fast_steps
    for one, other in zip(slow, fast, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    # Every token but the first of each request has a gap.
    assert sum(tokens) == sum(output - 1 for _, _, output in arrivals)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 500), st.integers(1, 40)), min_size=1, max_size=20))
def test_nothing_is_lost_and_order_of_admission_holds(arrivals):
    batcher = Batcher(PARAMS)
    sequences = []
    for at, prompt, output in sorted(arrivals):
        batcher.advance(at)
        sequence = Sequence(prompt, output, at)
        batcher.submit(sequence)
        sequences.append(sequence)
    batcher.advance(1e5)
    assert batcher.outstanding == 0
    admitted = [sequence.admitted_seconds for sequence in sequences]
    assert admitted == sorted(admitted)
    assert all(sequence.first_token_seconds >= sequence.arrival_seconds for sequence in sequences)


def test_an_abort_right_after_the_first_token_leaves_no_gap_behind():
    counts = []
    batcher = Batcher(PARAMS, Hooks(tokens=lambda _, count: counts.append(count)))
    stays, goes = Sequence(100, 5, 0.0), Sequence(100, 5, 0.0)
    other = Sequence(100, 9, 0.0)
    for sequence in (other, stays, goes):
        batcher.submit(sequence)
    while goes.first_token_seconds is None:
        batcher.advance(batcher.next_boundary_seconds)
    assert batcher.emitted(goes) == 1
    batcher.abort(goes)
    batcher.advance(100.0)
    assert min(counts) > 0
    assert sum(counts) == (5 - 1) + (9 - 1)
