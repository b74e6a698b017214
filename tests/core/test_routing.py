from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import routing

LEVELS = list(Sensitivity)
NAMES = ["a", "b", "c", "d"]


def tier(name, clearance):
    spec = {
        "model": "m",
        "clearance": clearance.value,
        "inCluster": {"image": "i:1", "replicas": {"min": 1, "max": 1}},
    }
    return ModelTier.parse({"metadata": {"name": name, "namespace": "n"}, "spec": spec})


def policy(refs, *, kept=None, mode="Auto", fallback=None, sensitivity=Sensitivity.PUBLIC):
    entry = {"name": "c", "tiers": refs, **({"fallback": fallback} if fallback else {})}
    body = {
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {
            "models": ["m"],
            "sensitivity": sensitivity.value,
            "classes": [entry],
            "rebalance": {"mode": mode},
        },
    }
    if kept is not None:
        weights = [{"tier": name, "percent": percent} for name, percent in kept.items()]
        body["status"] = {"classes": [{"name": "c", "weights": weights}]}
    return RoutingPolicy.parse(body)


def weights(each, allowed):
    return routing.weights_in_force(each, each.spec.classes[0], allowed)


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(-5, 1000) | st.decimals(0, 1000, places=3)))
def test_percentages_sum_to_a_hundred_and_miss_by_less_than_one(shares):
    found = routing.to_percent(shares)
    total = sum(Fraction(s) for s in shares.values() if s > 0)
    if not total:
        assert found == {}
        return
    assert sum(found.values()) == 100
    for name, percent in found.items():
        assert abs(percent - Fraction(shares[name]) * 100 / total) < 1
    assert {name for name, share in shares.items() if share > 0} == {*found}


def test_largest_remainder():
    assert routing.to_percent({"a": 1, "b": 1, "c": 1}) == {"a": 34, "b": 33, "c": 33}
    assert routing.to_percent({"a": Decimal("0.5"), "b": Decimal("199.5")}) == {"a": 0, "b": 100}


def test_status_outranks_the_spec_unless_weights_are_manual():
    refs = [{"name": "a", "weight": 80}, {"name": "b", "weight": 20}]
    assert weights(policy(refs), {"a", "b"}) == {"a": 80, "b": 20}
    assert weights(policy(refs, kept={"a": 30, "b": 70}), {"a", "b"}) == {"a": 30, "b": 70}
    assert weights(policy(refs, kept={"a": 30, "b": 70}, mode="Manual"), {"a", "b"}) == {"a": 80, "b": 20}


def test_tiers_that_the_spec_no_longer_lists_or_that_are_not_allowed_give_their_share_to_the_others():
    refs = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    kept = {"a": 10, "b": 30, "gone": 60}
    assert weights(policy(refs, kept=kept), {"a", "b", "c", "gone"}) == {"a": 25, "b": 75}
    assert weights(policy(refs, kept=kept), {"b", "c"}) == {"b": 100}
    assert weights(policy(refs, kept=kept), {"c"}) == {"c": 100}
    assert weights(policy(refs, kept={"gone": 100}), {"a", "b", "c"}) == {"a": 100}
    assert weights(policy(refs), set()) == {}


refs = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(
    lambda names: [{"name": n} for n in names]
)
kept = st.none() | st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100), max_size=4)
clearances = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(LEVELS), max_size=4)


@st.composite
def cases(draw):
    listed = draw(refs)
    names = [r["name"] for r in listed]
    fallback = {"attempts": draw(st.integers(1, 5))}
    if draw(st.booleans()):
        fallback["order"] = draw(st.permutations(names).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: p[:n])))
    each = policy(
        listed,
        kept=draw(kept),
        mode=draw(st.sampled_from(["Auto", "Manual", "Recommend"])),
        fallback=fallback,
        sensitivity=draw(st.sampled_from(LEVELS)),
    )
    return each, {name: tier(name, level) for name, level in draw(clearances).items()}, draw(st.sampled_from(LEVELS))


@given(cases())
def test_no_attempt_ever_reaches_a_tier_that_is_not_cleared_missing_or_not_listed(case):
    each, tiers, level = case
    plan = routing.plan_attempts(each, each.spec.classes[0], tiers, level)
    listed = {ref.name for ref in each.spec.classes[0].tiers}
    assert {*plan.tiers} <= listed & {*tiers}
    assert all(tiers[name].spec.effective_clearance >= level for name in plan.tiers)
    some_cleared = any(name in tiers and tiers[name].spec.effective_clearance >= level for name in listed)
    assert bool(plan.groups) is some_cleared


@given(cases())
def test_groups_line_up_and_no_request_tries_a_tier_twice_while_another_is_untried(case):
    each, tiers, level = case
    routing_class = each.spec.classes[0]
    plan = routing.plan_attempts(each, routing_class, tiers, level)
    assert len(plan.groups) <= routing_class.fallback.attempts
    for group in plan.groups:
        assert sum(percent for _, percent in group) == 100
        assert all(percent > 0 for _, percent in group)
        assert [percent for _, percent in group] == [percent for _, percent in plan.groups[0]]
    order = routing.fallback_order(routing_class, routing.cleared_tiers(routing_class, tiers, level))
    for chain in zip(*([name for name, _ in group] for group in plan.groups), strict=True):
        untried = [name for name in order if name != chain[0]]
        assert list(chain[1:]) == (untried + [(untried or [chain[0]])[-1]] * 5)[: len(chain) - 1]


def test_each_first_tier_falls_back_to_the_others_in_order():
    plan = routing.attempts({"a": 50, "b": 30, "c": 20}, ("a", "b", "c"), 3)
    assert plan.groups == (
        (("a", 50), ("b", 30), ("c", 20)),
        (("b", 50), ("a", 30), ("a", 20)),
        (("c", 50), ("c", 30), ("b", 20)),
    )
    assert routing.attempts({"a": 100}, ("a",), 3).groups == ((("a", 100),),)
    assert routing.attempts({}, ("a",), 3).groups == ()
