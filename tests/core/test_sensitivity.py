import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import sensitivity

LEVELS = list(Sensitivity)


def policy(of_policy, of_class=None):
    entry = {"name": "c", "tiers": [{"name": "t"}]}
    if of_class is not None:
        entry["sensitivity"] = of_class.value
    spec = {"models": ["m"], "sensitivity": of_policy.value, "classes": [entry]}
    return RoutingPolicy.parse({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})


def tier(clearance=None, *, external=False):
    spec = {"model": "m"}
    if clearance is not None:
        spec["clearance"] = clearance.value
    if external:
        spec["external"] = {"url": "https://x.example/v1"}
    else:
        spec["inCluster"] = {"image": "i:1", "replicas": {"min": 1, "max": 1}}
    return ModelTier.parse({"metadata": {"name": "t", "namespace": "n"}, "spec": spec})


@given(st.sampled_from(LEVELS), st.none() | st.sampled_from(LEVELS), st.none() | st.text(max_size=20))
def test_nothing_lowers_a_sensitivity(of_policy, of_class, header):
    if of_class is not None and of_class < of_policy:
        of_class = None
    each = policy(of_policy, of_class)
    found = sensitivity.effective(each, each.spec.classes[0], header)
    assert found >= of_policy
    assert of_class is None or found >= of_class
    named = {level.value.lower(): level for level in LEVELS}
    if header is not None:
        assert found >= named.get(header.strip().lower(), Sensitivity.RESTRICTED)
    highest = max(of_policy, of_class or of_policy, sensitivity.of_header(header) or of_policy)
    assert found is highest


@pytest.mark.parametrize("header", ["", "secret", "public, internal", "Öffentlich", "restricted "])
def test_words_that_we_do_not_know_are_restricted(header):
    assert sensitivity.of_header(header) is Sensitivity.RESTRICTED


def test_no_header_asks_for_nothing():
    assert sensitivity.of_header(None) is None


@given(st.sampled_from(LEVELS), st.sampled_from(LEVELS), st.booleans())
def test_a_tier_sees_what_it_is_cleared_for(clearance, level, external):
    assert sensitivity.cleared(tier(clearance, external=external), level) is (clearance.rank >= level.rank)


def test_without_a_clearance_a_provider_sees_public_requests_only_and_an_engine_all():
    assert [sensitivity.cleared(tier(external=True), level) for level in LEVELS] == [True, False, False, False]
    assert [sensitivity.cleared(tier(), level) for level in LEVELS] == [True] * 4
