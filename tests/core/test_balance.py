import itertools
import math
from dataclasses import replace

import bench_balance
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tierwise.core import afford, balance, problem, programme, rounding
from tierwise.core.problem import ClassLoad, Pair, Problem, Tier
from tierwise.core.quality import Floor

SCORES = [0.5, 0.7, 0.8, 0.9]


@st.composite
def problems(draw, classes=2):
    tiers = {
        "a": Tier("a", draw(st.sampled_from([1.0, 2.5])), draw(st.integers(0, 1)), draw(st.integers(1, 4))),
        "b": Tier("b", draw(st.sampled_from([6.0, 9.0])), draw(st.integers(0, 1)), draw(st.integers(1, 3))),
        "x": Tier("x", requests_limit=draw(st.sampled_from([None, 1.0, 5.0]))),
    }
    loads = []
    for number in range(classes):
        names = draw(st.sets(st.sampled_from(["a", "b", "x"]), min_size=1, max_size=3))
        pairs = []
        for name in sorted(names):
            score = draw(st.sampled_from([None, *SCORES]))
            low = draw(st.sampled_from([0.0, 0.0, 0.1]))
            high = draw(st.sampled_from([1.0, 1.0, 0.5]))
            common = {"score": score, "min_share": low, "max_share": high, "tokens": 1000.0}
            if name == "x":
                pairs.append(Pair("x", cost_per_request=draw(st.sampled_from([0.0005, 0.003])), **common))
            else:
                speed = draw(st.sampled_from([2.0, 5.0, 11.0]))
                limit = draw(st.sampled_from([0.0, 0.4, 0.8, 0.8]))
                pairs.append(Pair(name, utilisation=1 / speed, limit=limit, **common))
        floor = draw(st.sampled_from([None, 0.75, 0.85]))
        rate = draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
        loads.append(
            ClassLoad(("ns", "p", f"c{number}"), rate, tuple(pairs), Floor(floor) if floor is not None else None)
        )
    return Problem(tiers, tuple(loads))


def shares_on_a_grid(load, steps=4):
    names = [pair.tier for pair in load.pairs]
    for cut in itertools.product(range(steps + 1), repeat=len(names)):
        if sum(cut) == steps:
            yield {name: part / steps for name, part in zip(names, cut, strict=True)}


def one_idle(*pairs, floor=None):
    tiers = {"a": Tier("a", 1.0, 0, 1), "b": Tier("b", 6.0, 0, 1), "x": Tier("x")}
    return Problem(tiers, (ClassLoad(("ns", "p", "c0"), 0.0, pairs, Floor(floor) if floor is not None else None),))


@given(problems())
@example(one_idle(Pair("a", utilisation=0.5, min_share=0.1), Pair("x", cost_per_request=0.0005)))
@example(one_idle(Pair("a", utilisation=0.5, score=0.9), Pair("x", cost_per_request=0.0005, score=0.7), floor=0.75))
@example(one_idle(Pair("a", utilisation=0.5), Pair("x", cost_per_request=0.0005, max_share=0.5)))
@settings(max_examples=15, deadline=None)
def test_no_static_mix_is_cheaper(stated):
    solution = balance.solve(stated)
    assert solution is not None
    if solution.overload or solution.relaxed:
        return  # compared below: then no mix may be feasible
    grids = [list(shares_on_a_grid(load)) for load in stated.classes]
    for mixes in itertools.product(*grids):
        option = problem.evaluate(stated, "mix", {load.key: m for load, m in zip(stated.classes, mixes, strict=True)})
        if option.feasible:
            assert solution.cost_per_hour <= option.cost_per_hour * (1 + 2 * balance.RELATIVE_GAP) + 0.02


def test_a_trickle_gets_a_replica_too():
    tiers = {"small": Tier("small", 1.0, 0, 2), "dear": Tier("dear", 600.0, 0, 1)}
    pair = Pair("dear", utilisation=0.01, limit=0.8, tokens=10.0)
    load = ClassLoad(("ns", "p", "c"), 0.01, (pair,), None)
    solution = balance.solve(Problem(tiers, (load,)))
    assert (solution.replicas, solution.overload, solution.relaxed) == ({"dear": 1, "small": 0}, {}, ())


@given(problems())
@settings(max_examples=15, deadline=None)
def test_something_gives_way_only_when_no_mix_is_feasible(stated):
    solution = balance.solve(stated)
    if not (solution.overload or solution.relaxed):
        return
    grids = [list(shares_on_a_grid(load)) for load in stated.classes]
    for mixes in itertools.product(*grids):
        option = problem.evaluate(stated, "mix", {load.key: m for load, m in zip(stated.classes, mixes, strict=True)})
        assert not option.feasible, (option, solution)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_constraints_hold(stated):
    solution = balance.solve(stated)
    for load in stated.classes:
        mix = solution.shares[load.key]
        assert math.isclose(sum(mix.values()), 1.0, abs_tol=1e-6)
        assert set(mix) <= {pair.tier for pair in load.pairs}, "a tier that is not cleared is never used"
        gave_way = {entry.kind for entry in solution.relaxed if entry.subject == "/".join(load.key[1:])}
        floors = load.floor is not None and "FloorUnreachable" not in gave_way
        for pair in load.pairs:
            share = mix.get(pair.tier, 0.0)
            if floors and pair.score is None:
                assert share == 0, "unknown quality satisfies no floor"
            if "WeightBounds" not in gave_way and pair.tier in mix:
                assert pair.min_share - 1e-6 <= share <= pair.max_share + 1e-6
            if pair.limit == 0 and share > 1e-6:
                assert "Latency" in gave_way
        if floors:
            scores = {pair.tier: pair.score or 0.0 for pair in load.pairs}
            assert sum(share * scores[tier] for tier, share in mix.items()) >= load.floor.value - 1e-6
    for name, tier in stated.tiers.items():
        if tier.external:
            rate = sum(load.rate * solution.shares[load.key].get(name, 0.0) for load in stated.classes)
            over = any(entry.kind == "ProviderLimit" for entry in solution.relaxed)
            assert over or tier.requests_limit is None or rate <= tier.requests_limit + 1e-2
            continue
        assert tier.min_replicas <= solution.replicas[name] <= max(tier.min_replicas, tier.max_replicas)
        used = [
            (load.rate * solution.shares[load.key].get(name, 0.0) * pair.utilisation, pair.limit or 0.5)
            for load in stated.classes
            for pair in load.pairs
            if load.rate > 0 and pair.tier == name and solution.shares[load.key].get(name, 0.0) > 1e-6
        ]
        if used and name not in solution.overload:
            limit = min(limit for _, limit in used)
            load_on = sum(part for part, _ in used)
            assert load_on <= solution.replicas[name] * limit * stated.headroom + 1e-3


@given(problems())
@settings(max_examples=10, deadline=None)
def test_equal_problems_have_equal_solutions(stated):
    assert balance.solve(stated) == balance.solve(stated)


def test_an_idle_replica_takes_what_would_cost_tokens():
    pairs = (Pair("a", utilisation=0.1), Pair("x", cost_per_request=0.001))
    stated = Problem(
        {"a": Tier("a", 10.0, 1, 1), "x": Tier("x")}, (ClassLoad(("ns", "p", "c"), 1.0, pairs),), headroom=0.9
    )
    assert balance.solve(stated).shares["ns", "p", "c"]["a"] == 1.0


def test_a_floor_splits_between_cheap_and_good():
    pairs = (Pair("a", utilisation=0.1, score=0.6), Pair("x", cost_per_request=0.01, score=0.9))
    load = ClassLoad(("ns", "p", "c"), 4.0, pairs, Floor(0.75))
    solution = balance.solve(Problem({"a": Tier("a", 1.0, 0, 4), "x": Tier("x")}, (load,)))
    assert math.isclose(solution.shares[load.key]["a"], 0.5, abs_tol=1e-3)
    assert solution.binding[load.key] == "Floor"


def test_an_unreachable_floor_gets_the_best_there_is_and_says_so():
    pairs = (Pair("a", utilisation=0.1, score=0.6), Pair("b", utilisation=0.1, score=0.7))
    load = ClassLoad(("ns", "p", "c"), 1.0, pairs, Floor(0.95))
    solution = balance.solve(Problem({"a": Tier("a", 1.0, 0, 4), "b": Tier("b", 9.0, 0, 4)}, (load,)))
    assert solution.shares[load.key]["b"] > 0.999
    assert [entry.kind for entry in solution.relaxed] == ["FloorUnreachable"]


def test_of_unknown_reference_quality_only_the_reference_loses_nothing():
    pairs = (Pair("a", utilisation=0.1, score=0.9), Pair("b", utilisation=0.1))
    load = ClassLoad(("ns", "p", "c"), 1.0, pairs, Floor(None, only="b"))
    solution = balance.solve(Problem({"a": Tier("a", 1.0, 0, 4), "b": Tier("b", 9.0, 0, 4)}, (load,)))
    assert solution.shares[load.key] == {"b": 1.0}


def test_the_strictest_class_in_use_sets_the_load_of_a_shared_tier():
    strict = ClassLoad(("ns", "p", "s"), 1.0, (Pair("a", utilisation=0.1, limit=0.2),))
    loose = ClassLoad(("ns", "p", "l"), 8.0, (Pair("a", utilisation=0.1, limit=0.8),))
    tiers = {"a": Tier("a", 1.0, 0, 20)}
    assert balance.solve(Problem(tiers, (loose,), headroom=1.0)).replicas["a"] == 1
    assert balance.solve(Problem(tiers, (strict, loose), headroom=1.0)).replicas["a"] == 5


def test_too_much_load_gives_latency_way_and_nothing_else():
    pairs = (Pair("a", utilisation=1.0, score=0.9),)
    load = ClassLoad(("ns", "p", "c"), 10.0, pairs, Floor(0.8))
    solution = balance.solve(Problem({"a": Tier("a", 1.0, 0, 3)}, (load,)))
    assert solution.replicas["a"] == 3
    assert [entry.kind for entry in solution.relaxed] == ["Latency"]


def test_a_cost_target_gives_way_first():
    load = ClassLoad(("ns", "p", "c"), 10.0, (Pair("a", utilisation=0.1),))
    solution = balance.solve(Problem({"a": Tier("a", 1.0, 0, 9)}, (load,), cost_target_per_hour=0.5))
    assert [entry.kind for entry in solution.relaxed] == ["CostTarget"]
    assert not solution.overload


def loaded(stated):
    return tuple(item for load in stated.classes if load.rate > 0 and (item := problem.usable(load)).pairs)


@given(problems(classes=6))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_rounding_of_large_problems_keeps_constraints_and_costs_little_more(stated):
    ready = loaded(stated)
    rounded = rounding.solve(stated, ready, time_limit_seconds=2.0) if ready else None
    if rounded is None:
        assert not ready
        return
    exact = balance.solve(stated)
    for item in ready:
        assert math.isclose(sum(rounded.shares[item.load.key].values()), 1.0, abs_tol=1e-6)
    if not rounded.excess and not rounded.overload and not exact.relaxed:
        assert exact.cost_per_hour <= problem.cost_of(stated, rounded.replicas, rounded.shares) + 0.05


def test_rounding_is_near_the_optimum_of_what_it_rounds():
    ratios = []
    for seed in (0, 1, 4):
        stated = bench_balance.make(tiers=12, classes=40, each=4, seed=seed)
        ready = loaded(stated)
        rounded = rounding.solve(stated, ready, time_limit_seconds=5.0)
        whole = programme.Programme(stated, ready, exact=False)
        for column in whole.replicas.values():
            whole.model._integer[column] = True
        best = whole.model.solve(time_limit_seconds=60.0, relative_gap=2e-3)
        assert best.status == "Optimal"
        optimum = whole.read(best.values, best.status)
        least = problem.cost_of(stated, optimum.replicas, optimum.shares)
        assert rounded.overload == pytest.approx(dict(optimum.overload), abs=1e-6)
        ratios.append(problem.cost_of(stated, rounded.replicas, rounded.shares) / least)
    assert min(ratios) >= 1 - 2e-3
    assert max(ratios) <= 1.03
    assert sum(ratios) / len(ratios) <= 1.01


@pytest.mark.parametrize("seed", range(3))
def test_rounding_does_not_pay_for_half_a_replica_of_every_tier(seed):
    """The optimum is about a tenth above the relaxation; with all tiers rounded up it is three quarters."""
    stated = bench_balance.make(tiers=50, classes=200, each=8, seed=seed)
    relaxed = programme.Programme(stated, loaded(stated), exact=False).model
    least = relaxed.solve(time_limit_seconds=5.0, relative_gap=0.0).objective
    assert least <= balance.solve(stated).cost_per_hour <= 1.3 * least


def test_a_large_namespace_has_one_answer_and_keeps_what_it_promises():
    stated = bench_balance.make(tiers=20, classes=60, each=5, seed=7)
    solution = balance.solve(stated)
    assert solution == balance.solve(stated)
    assert (solution.overload, solution.relaxed) == ({}, ())
    for load in stated.classes:
        scores = {pair.tier: pair.score for pair in load.pairs}
        assert sum(share * scores[tier] for tier, share in solution.shares[load.key].items()) >= load.floor.value - 1e-6
    needed = problem.needed_replicas(stated, solution.shares)
    assert all(solution.replicas[name] >= count for name, count in needed.items())


def test_without_time_there_is_no_answer_rather_than_a_bad_one():
    assert balance.solve(bench_balance.make(tiers=20, classes=60, each=5, seed=7), time_limit_seconds=0.0) is None


def loss(stated, solution):
    """Mean quality below the floors, over the demand."""
    missed = 0.0
    for load in stated.classes:
        mean = sum(solution.shares[load.key][pair.tier] * pair.score for pair in load.pairs)
        missed += load.rate * max(0.0, load.floor.value - mean)
    return missed / sum(load.rate for load in stated.classes)


def test_a_large_namespace_under_a_ceiling_loses_as_little_quality_as_it_has_to():
    stated = bench_balance.make(tiers=12, classes=40, each=4, seed=1)
    stated = replace(stated, classes=tuple(replace(load, yields=True) for load in stated.classes))
    free = balance.solve(stated)
    bare = balance.solve(replace(stated, classes=tuple(replace(load, floor=None) for load in stated.classes)))
    target = (free.cost_per_hour + bare.cost_per_hour) / 2
    found = afford.solve(replace(stated, cost_target_per_hour=target))
    assert found.cost_per_hour <= target * 1.001
    assert not found.overload
    assert loss(stated, free) <= 1e-6 < loss(stated, found) < loss(stated, bare) / 4
    assert "QualityFloor" in {entry.kind for entry in found.relaxed}


def test_a_trickle_gets_a_replica_in_a_large_namespace_too():
    stated = bench_balance.make(tiers=10, classes=20, each=5, seed=1)
    lone = ClassLoad(("ns", "p", "z"), 1e-5, (Pair("dear", utilisation=0.01, limit=0.8, tokens=10.0),), None)
    tiers = {**stated.tiers, "dear": Tier("dear", 600.0, 0, 1)}
    joined = ClassLoad(("ns", "p", "y"), 1.0, (Pair("dear", cost_per_request=0.0), stated.classes[0].pairs[0]), None)
    solution = balance.solve(Problem(tiers, (*stated.classes, joined, lone)))
    assert (solution.replicas["dear"], solution.overload, solution.relaxed) == (1, {}, ())


@given(problems(), problems())
@settings(max_examples=15, deadline=None)
def test_classes_that_share_no_tier_are_solved_as_if_alone(one, other):
    """And those that do through a third are not: the sum of both is what each costs."""
    moved = {f"z{name}": replace(tier, name=f"z{name}") for name, tier in other.tiers.items()}
    loads = tuple(
        replace(load, key=("ns", "q", load.key[2]), pairs=tuple(replace(p, tier=f"z{p.tier}") for p in load.pairs))
        for load in other.classes
    )
    both = balance.solve(Problem({**one.tiers, **moved}, (*one.classes, *loads)))
    alone = balance.solve(one), balance.solve(other)
    assert both.replicas == {**alone[0].replicas, **{f"z{name}": count for name, count in alone[1].replicas.items()}}
    for key, mix in alone[0].shares.items():
        assert both.shares[key] == pytest.approx(mix, abs=1e-6)
    assert math.isclose(both.cost_per_hour, alone[0].cost_per_hour + alone[1].cost_per_hour, abs_tol=1e-9)
    assert len(both.relaxed) == len(alone[0].relaxed) + len(alone[1].relaxed)


@given(problems(classes=3))
@settings(max_examples=15, deadline=None)
def test_parts_come_to_what_the_whole_comes_to(stated):
    ready = loaded(stated)
    if not ready:
        return
    whole = programme.Programme(stated, ready)
    outcome = whole.model.solve(time_limit_seconds=5.0, relative_gap=0.0)
    found = whole.read(outcome.values, outcome.status)
    solution = balance.solve(stated)
    if not (found.overload or found.excess or solution.overload or solution.relaxed):
        cost = problem.cost_of(stated, found.replicas, found.shares)
        assert solution.cost_per_hour <= cost * (1 + balance.RELATIVE_GAP) + 0.01
        assert cost <= solution.cost_per_hour + 0.01


IDLE = ("ns", "p", "idle")
BUSY = ClassLoad(("ns", "p", "busy"), 3.0, (Pair("b", utilisation=0.2, limit=0.8),))


def idle_class(*pairs, floor=None):
    return ClassLoad(IDLE, 0.0, pairs, Floor(floor) if floor is not None else None)


def test_nothing_runs_for_a_class_without_demand_whatever_it_insists_on():
    tiers = {"a": Tier("a", 1.0, 0, 1), "x": Tier("x")}
    insists = idle_class(Pair("a", utilisation=0.5, min_share=0.1), Pair("x", cost_per_request=0.001))
    solution = balance.solve(Problem(tiers, (insists,)))
    assert (solution.replicas, solution.cost_per_hour) == ({"a": 0}, 0.0)
    assert solution.shares[IDLE] == pytest.approx({"a": 0.1, "x": 0.9})
    floor = idle_class(Pair("a", utilisation=0.5, score=0.9), Pair("x", score=0.5), floor=0.7)
    solution = balance.solve(Problem(tiers, (floor,)))
    assert (solution.replicas, solution.cost_per_hour) == ({"a": 0}, 0.0)
    assert solution.shares[IDLE] == pytest.approx({"a": 0.5, "x": 0.5}, abs=1e-6)


def test_a_class_without_demand_points_at_what_runs_for_others():
    tiers = {"a": Tier("a", 1.0, 0, 3), "b": Tier("b", 6.0, 0, 3), "x": Tier("x")}
    idle = idle_class(Pair("a", utilisation=0.1), Pair("x", cost_per_request=0.001), Pair("b", utilisation=0.2))
    solution = balance.solve(Problem(tiers, (BUSY, idle)))
    assert solution.replicas == {"a": 0, "b": 1}
    assert solution.shares[IDLE] == {"a": 0.0, "b": 1.0, "x": 0.0}
    assert balance.solve(Problem(tiers, (idle,))).shares[IDLE]["x"] == 1.0, "nothing runs: only the provider answers"


def test_a_class_without_demand_neither_points_at_a_full_tier_nor_slows_one_down():
    tiers = {"b": Tier("b", 6.0, 0, 1), "x": Tier("x")}
    strict = Pair("b", utilisation=0.2, limit=0.3)
    full = balance.solve(Problem(tiers, (BUSY, idle_class(strict, Pair("x", cost_per_request=0.001)))))
    assert (full.replicas, full.shares[IDLE], full.relaxed) == ({"b": 1}, {"b": 0.0, "x": 1.0}, ())
    only = balance.solve(Problem(tiers, (BUSY, idle_class(strict))))
    assert (only.replicas, only.overload, only.relaxed) == ({"b": 1}, {}, ())
    assert problem.needed_replicas(Problem(tiers, (BUSY, idle_class(strict))), only.shares) == {"b": 1}
