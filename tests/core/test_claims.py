from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import claims
from tierwise.core.world import Key

START = datetime(2026, 1, 1, tzinfo=UTC)


def policy(name, namespace, models, hostnames=(), age=0, uid=""):
    return RoutingPolicy.parse(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": uid or name,
                "creationTimestamp": (START + timedelta(seconds=age)).isoformat(),
            },
            "spec": {
                "models": list(models),
                "hostnames": list(hostnames),
                "sensitivity": "Public",
                "classes": [{"name": "c", "tiers": [{"name": "t"}]}],
            },
        }
    )


def settle(*policies):
    return claims.settle({Key(p.metadata.namespace, p.metadata.name): p for p in policies})


def test_the_oldest_policy_has_the_model_and_the_other_is_told():
    old = policy("z-old", "n", ["m", "x"], age=1)
    new = policy("a-new", "n", ["m", "y"], age=2)
    found = settle(new, old)
    assert found.models == {("n", "m"): Key("n", "z-old"), ("n", "x"): Key("n", "z-old"), ("n", "y"): Key("n", "a-new")}
    (conflict,) = found.conflicts
    assert conflict == claims.Conflict(Key("n", "a-new"), "models", "m", Key("n", "z-old"))
    assert found.conflicts_of(Key("n", "a-new")) == (conflict,)
    assert found.conflicts_of(Key("n", "z-old")) == ()
    assert "model 'm' belongs to RoutingPolicy n/z-old" in conflict.message


def test_equal_ages_are_settled_by_uid():
    assert settle(policy("a", "n", ["m"], uid="2"), policy("b", "n", ["m"], uid="1")).models == {
        ("n", "m"): Key("n", "b")
    }


def test_models_are_unique_within_a_namespace_hostnames_overall():
    one = policy("one", "n1", ["m"], ["h.example"], age=1)
    two = policy("two", "n2", ["m"], ["h.example"], age=2)
    found = settle(two, one)
    assert found.models == {("n1", "m"): Key("n1", "one"), ("n2", "m"): Key("n2", "two")}
    assert found.hostnames == {"h.example": Key("n1", "one")}
    assert found.conflicts == (claims.Conflict(Key("n2", "two"), "hostnames", "h.example", Key("n1", "one")),)


def test_policies_of_one_namespace_share_a_hostname():
    assert settle(policy("a", "n", ["m1"], ["h"]), policy("b", "n", ["m2"], ["h"], age=1)).conflicts == ()


def test_what_was_never_stored_is_youngest():
    unsaved = RoutingPolicy.parse(
        {"metadata": {"name": "u", "namespace": "n"}, "spec": policy("x", "n", ["m"]).spec.dump()}
    )
    assert settle(unsaved, policy("saved", "n", ["m"], age=9)).models == {("n", "m"): Key("n", "saved")}


names = st.sampled_from("abcd")
policies = st.lists(
    st.builds(
        policy,
        name=names,
        namespace=st.sampled_from(["n1", "n2"]),
        models=st.lists(st.sampled_from(["m1", "m2", "m3"]), min_size=1, unique=True),
        hostnames=st.lists(st.sampled_from(["h1", "h2"]), unique=True),
        age=st.integers(0, 3),
        uid=st.text("0123456789", min_size=1, max_size=3),
    ),
    max_size=8,
)


@given(policies)
def test_each_name_has_one_owner_and_each_other_claimant_is_told(given_policies):
    by_key = {Key(p.metadata.namespace, p.metadata.name): p for p in given_policies}
    found = claims.settle(by_key)
    told = {(c.policy, c.field, c.name) for c in found.conflicts}
    for key, each in by_key.items():
        for model in each.spec.models:
            owner = found.models[(key.namespace, model)]
            assert (owner == key) is ((key, "models", model) not in told)
            assert claims.age_order((owner, by_key[owner])) <= claims.age_order((key, each))
        for hostname in each.spec.hostnames:
            owner = found.hostnames[hostname]
            assert (owner.namespace == key.namespace) is ((key, "hostnames", hostname) not in told)
            assert claims.age_order((owner, by_key[owner])) <= claims.age_order((key, each))
    assert claims.settle(dict(reversed(by_key.items()))) == found
