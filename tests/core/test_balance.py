import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import balance, problem
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


@given(problems())
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
            if pair.tier == name and solution.shares[load.key].get(name, 0.0) > 1e-6
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


@given(problems(classes=6))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_rounding_of_large_problems_keeps_constraints_and_costs_little_more(stated):
    ready = tuple(item for load in stated.classes if (item := problem.usable(load)).pairs)
    rounded = balance._rounded(stated, ready, 2.0)
    exact = balance.solve(stated)
    for load in stated.classes:
        assert math.isclose(sum(rounded.shares[load.key].values()), 1.0, abs_tol=1e-6)
    limits = [entry for entry in (*rounded.relaxed, *exact.relaxed) if entry.kind == "ProviderLimit"]
    if not limits and not rounded.overload and not exact.overload:
        assert exact.cost_per_hour <= rounded.cost_per_hour + 0.05
