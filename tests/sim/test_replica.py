"""The closed form against the iteration-level form, and against facts that hold for any parameters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.sim.batching import Batcher, Sequence
from tierwise.sim.profiles import PROFILES, PROVIDERS, UnknownProfileError, profile, profile_for_model
from tierwise.sim.replica import (
    Mix,
    Objective,
    ReplicaModelError,
    ReplicaParams,
    capacity,
    inter_token_seconds,
    running_sequences,
    time_to_first_token_seconds,
    utilisation,
    work_seconds,
)


def simulated(params, prompt, output, rate, seconds=400.0, seed=1):
    """Mean time between tokens and mean time to first token of an iteration-level run with Poisson arrivals."""
    source = random.Random(seed)
    batcher = Batcher(params)
    sequences = []
    at = source.expovariate(rate)
    while at < seconds:
        batcher.advance(at)
        sequence = Sequence(prompt, output, at)
        batcher.submit(sequence)
        sequences.append(sequence)
        at += source.expovariate(rate)
    batcher.advance(seconds + 1e6)
    settled = [sequence for sequence in sequences if sequence.arrival_seconds > seconds / 5]
    return (
        sum(sequence.inter_token_seconds for sequence in settled) / len(settled),
        sum(sequence.ttft_seconds for sequence in settled) / len(settled),
    )


@pytest.mark.parametrize("name", ["qwen3-8b/l40s", "qwen3-8b/h100", "qwen3-32b/2xa100", "llama-3.1-70b/4xh100"])
@pytest.mark.parametrize("rho", [0.1, 0.3, 0.5])
def test_closed_form_agrees_with_iterations(name, rho):
    params = profile(name).params
    mix = Mix.of(1000, 200)
    rate = rho / work_seconds(params, mix)
    gap, ttft = simulated(params, 1000, 200, rate)
    # Between prefills batched without end and each prompt alone, with 4 % for what a finite run leaves to chance.
    alone = utilisation(params, mix, rate, prompts_per_prefill=1)
    assert 0.96 * inter_token_seconds(params, rho) < gap < 1.04 * inter_token_seconds(params, alone)
    print(f"{name} rho {rho}: simulated {gap * 1e3:.2f} ms, closed {inter_token_seconds(params, rho) * 1e3:.2f}")
    # Arrivals collide in prefill, which the closed form spreads evenly: it holds for the mean within a factor.
    assert 0.5 < ttft / time_to_first_token_seconds(params, rho, 1000) < 1.5


def test_parameters_are_those_of_the_fit_times_the_measured_slowdown():
    params = profile("qwen3-8b/l40s").params
    assert params.a_ms == pytest.approx(22.4188 * 1.35)
    assert params.decode_ms(10, 10_000) == pytest.approx(1.35 * (22.4188 + 0.0326 * 10 + 0.2217 * 10))
    assert params.prefill_ms(1000) == pytest.approx(1.35 * (8.0598 + 67.7917 + 2.4782))
    # Two prompts share the fixed part, and each pays its own square.
    assert params.prefill_ms(1000, 2000) == pytest.approx(1.35 * (8.0598 + 3 * 67.7917 + 5 * 2.4782))


def test_capacity_is_where_the_objective_just_holds():
    params = profile("qwen3-8b/l40s").params
    mix = Mix.of(1000, 150)
    objective = Objective(ttft_seconds=2.0, inter_token_seconds=0.05)
    held = capacity(params, mix, objective, 2000)
    assert held.binds == "inter_token"
    assert utilisation(params, mix, held.requests_per_second) == pytest.approx(held.utilisation)
    assert inter_token_seconds(params, held.utilisation) == pytest.approx(0.05)
    assert running_sequences(params, mix, held.requests_per_second) == pytest.approx(held.sequences)
    tighter = capacity(params, mix, Objective(ttft_seconds=0.3, inter_token_seconds=0.05), 2000)
    assert tighter.binds == "ttft"
    assert time_to_first_token_seconds(params, tighter.utilisation, 2000) == pytest.approx(0.3)
    assert capacity(params, mix, Objective(inter_token_seconds=0.02), 2000).binds == "idle"


def test_capacity_stops_at_running_sequences_and_cache():
    params = ReplicaParams(10.0, 0.0001, 0.0001, 1.0, 0.1, 0.0, kv_tokens=10**9, max_sequences=4)
    held = capacity(params, Mix.of(10, 100), Objective(), 10)
    assert (held.binds, held.sequences) == ("sequences", pytest.approx(4))
    small = ReplicaParams(10.0, 0.0001, 0.0001, 1.0, 0.1, 0.0, kv_tokens=600)
    held = capacity(small, Mix.of(10, 100), Objective(), 10)
    assert (held.binds, held.sequences) == ("kv_cache", pytest.approx(10))


@given(
    prompt=st.integers(1, 8000),
    output=st.integers(2, 1000),
    rate=st.floats(0.01, 2),
    factor=st.floats(1.01, 3),
)
def test_more_load_or_a_slower_machine_is_never_faster(prompt, output, rate, factor):
    params = profile("qwen3-8b/h100").params
    mix = Mix.of(prompt, output)
    rho = utilisation(params, mix, rate)
    slower = utilisation(params.scaled(factor), mix, rate)
    assert slower >= rho
    if rho < 0.9:
        assert inter_token_seconds(params, rho) >= inter_token_seconds(params, rho / 2)
    objective = Objective(ttft_seconds=5.0, inter_token_seconds=0.05)
    assert (
        capacity(params.scaled(factor), mix, objective, prompt).requests_per_second
        <= capacity(params, mix, objective, prompt).requests_per_second
    )


def test_saturation_and_nonsense_are_errors():
    params = profile("qwen3-8b/l40s").params
    with pytest.raises(ReplicaModelError, match="no steady state"):
        inter_token_seconds(params, 1.0)
    with pytest.raises(ReplicaModelError, match="a > 0"):
        params.scaled(-1.0)


def test_profiles():
    assert profile_for_model("Qwen/Qwen3-8B").name == "qwen3-8b/l40s"
    assert profile_for_model("Qwen/Qwen3-32B", 2).name == "qwen3-32b/2xh100"
    assert profile_for_model("meta-llama/Llama-3.1-70B-Instruct", 4).name == "llama-3.1-70b/4xh100"
    assert profile_for_model("something-else") is None
    assert str(profile("qwen3-235b-a22b/8xh200").usd_per_replica_hour) == "28.00"
    assert 2_700_000 < profile("qwen3-235b-a22b/8xh200").params.kv_tokens < 2_900_000
    assert all(found.params.kv_tokens > 100_000 for found in PROFILES.values())
    assert all(found.ttft_p95_seconds > found.ttft_median_seconds for found in PROVIDERS.values())
    with pytest.raises(UnknownProfileError, match="qwen3-8b/l40s"):
        profile("nothing/here")


def test_objective_of_one_token_requests_ignores_the_gap():
    objective = Objective(ttft_seconds=1.0, inter_token_seconds=0.05, latency_seconds=3.0)
    assert objective.met(1.0, None, 1.0)
    assert objective.met(1.0, 0.05, 3.0)
    assert not objective.met(1.0, 0.051, 2.0)
    assert not objective.met(1.1, 0.01, 2.0)
    assert not objective.met(0.1, 0.01, 3.1)
