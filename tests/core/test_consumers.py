"""Whose a key and an identity are, and what a Consumer's status says."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tierwise import planner
from tierwise.api.consumer import Consumer
from tierwise.core import consumers
from tierwise.core.consumers import Identity
from tierwise.core.world import Key, SecretData, World

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
GOOD = "tw-" + "0123456789abcdef" * 2
ISSUER = "https://login.example"


def consumer(name, namespace="legal", *, age=0, suspend=False, keys=(), subjects=(), expires=None):
    spec = {"suspend": suspend}
    if keys:
        spec["apiKeys"] = [{"name": one, **({"expiresAt": expires.isoformat()} if expires else {})} for one in keys]
    if subjects:
        spec["jwt"] = [{"issuer": ISSUER, "subject": one} for one in subjects]
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"{namespace}-{name}",
        "generation": 3,
        "creationTimestamp": (NOW - timedelta(days=age)).isoformat(),
    }
    return Consumer.parse({"metadata": metadata, "spec": spec})


def world(*found, secrets=None, now=NOW):
    return World(
        now=now,
        replica="operator-0",
        tiers={},
        policies={},
        budgets={},
        consumers={Key(one.metadata.namespace, one.metadata.name): one for one in found},
        secrets={Key(*name.split("/")): SecretData({"token": value}) for name, value in (secrets or {}).items()},
    )


def ready(found, of=0):
    access = consumers.settle(found)
    key, one = list(found.consumers.items())[of]
    condition = consumers.status(found, access, key, one).conditions[0]
    assert condition.type == "Ready"
    return condition.status.value, condition.reason, condition.message


def test_a_key_is_the_older_consumers_and_names_nobody_of_another_namespace():
    found = world(
        consumer("young", keys=["k"]),
        consumer("old", "rival", age=9, keys=["k"]),
        secrets={"legal/k": GOOD.encode(), "rival/k": GOOD.encode() + b"\n"},
    )
    assert consumers.settle(found).keys == {GOOD: Key("rival", "old")}
    status, reason, message = ready(found)
    assert (status, reason) == ("False", "Taken")
    assert "rival" not in message
    assert ready(found, 1)[:2] == ("True", "Accepted")


def test_what_is_no_usable_key_is_refused_with_the_remedy():
    for value, reason in (
        (None, "KeyNotFound"),
        (b"", "KeyUnusable"),
        (b"short", "KeyUnusable"),
        (b"x" * 513, "KeyUnusable"),
        (b"with a space in the middle", "KeyUnusable"),
        ("schlüssel-".encode() * 4, "KeyUnusable"),
        (b"\xff" * 30, "KeyUnusable"),
        (b"line\nbreak" * 5, "KeyUnusable"),
    ):
        found = world(consumer("app", keys=["k"]), secrets={} if value is None else {"legal/k": value})
        assert consumers.settle(found).keys == {}
        status, said, message = ready(found)
        assert (status, said) == ("False", reason)
        assert "Secret 'k', key 'token'" in message


def test_an_expired_key_is_refused_from_its_very_moment():
    expires = NOW + timedelta(hours=1)
    secrets = {"legal/k": GOOD.encode()}
    app = consumer("app", keys=["k"], expires=expires)
    before = consumers.settle(world(app, secrets=secrets, now=expires - timedelta(microseconds=1)))
    assert (len(before.keys), before.next_change) == (1, expires)
    found = world(app, secrets=secrets, now=expires)
    after = consumers.settle(found)
    assert (len(after.keys), after.next_change) == (0, None)
    assert ready(found)[:2] == ("False", "KeyExpired")
    plan = planner.plan(world(app, secrets=secrets, now=expires - timedelta(seconds=5)))
    assert 5 <= plan.next_round_seconds <= 6


def test_a_suspended_consumer_has_nothing():
    found = world(consumer("app", keys=["k"], subjects=["s"], suspend=True), secrets={"legal/k": GOOD.encode()})
    access = consumers.settle(found)
    assert (access.keys, access.identities) == ({}, {})
    assert ready(found)[:2] == ("False", "Suspended")


def test_half_of_it_is_enough_to_be_ready_and_says_what_is_missing():
    found = world(consumer("app", keys=["k", "lost"]), secrets={"legal/k": GOOD.encode()})
    status, reason, message = ready(found)
    assert (status, reason) == ("True", "PartlyAccepted")
    assert "lost" in message


def test_an_identity_that_bears_another_consumers_name_is_not_taken_for_it():
    """Metrics and bills go by one label."""
    found = world(consumer("app", age=1, subjects=["batch"]), consumer("batch", keys=["k"]))
    assert consumers.settle(found).identities == {}
    assert ready(found)[:2] == ("False", "Taken")


def test_planning_writes_a_status_once():
    found = world(consumer("app", keys=["k"]), secrets={"legal/k": GOOD.encode()})
    (written,) = planner.plan(found).statuses
    assert written.status["acceptedKeys"] == 1
    known = Consumer.parse(
        {**next(iter(found.consumers.values())).manifest(), "status": dict(written.status)}
        | {"metadata": {"name": "app", "namespace": "legal", "uid": "legal-app", "generation": 3}}
    )
    again = world(known, secrets={"legal/k": GOOD.encode()})
    assert planner.plan(again).statuses == ()
    assert GOOD not in repr(planner.plan(found))
    assert GOOD not in repr(consumers.settle(found))


NAMES = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(
        st.tuples(
            NAMES, st.sampled_from(["legal", "rival"]), st.integers(0, 5), st.lists(NAMES, max_size=3, unique=True)
        ),
        max_size=6,
        unique_by=lambda one: one[:2],
    ),
    st.dictionaries(st.tuples(st.sampled_from(["legal", "rival"]), NAMES), st.sampled_from(["1", "2"])),
)
def test_whatever_is_listed_each_credential_has_one_owner_who_lists_it(rows, values):
    people = [
        consumer(name, namespace, age=age, keys=names or ["none"], subjects=names)
        for name, namespace, age, names in rows
    ]
    secrets = {f"{namespace}/{name}": (GOOD + value).encode() for (namespace, name), value in values.items()}
    access = consumers.settle(world(*people, secrets=secrets))
    by_key = {Key(one.metadata.namespace, one.metadata.name): one for one in people}
    for value, owner in access.keys.items():
        assert value.encode() in {secrets.get(f"{owner.namespace}/{k.name}") for k in by_key[owner].spec.api_keys}
        for key, other in by_key.items():
            lists = {secrets.get(f"{key.namespace}/{k.name}") for k in other.spec.api_keys}
            if value.encode() in lists:
                assert by_key[owner].metadata.creation_timestamp <= other.metadata.creation_timestamp
    for (namespace, identity), owner in access.identities.items():
        assert owner.namespace == namespace
        assert identity in {Identity(one.issuer, one.subject) for one in by_key[owner].spec.jwt}
        first = access.first[identity]
        assert (first, identity) in access.identities
