"""Replica-seconds from what was observed, and what they and the tokens cost."""

from decimal import Decimal

import demo_worlds as worlds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.demo import bill, pods
from tierwise.demo.pods import PodBook


def pod(uid: str, tier: str = "compact", *, ready: bool = False, phase: str = "Running") -> dict[str, object]:
    return {
        "metadata": {"namespace": "demo", "name": f"pod-{uid}", "uid": uid, "labels": {"tierwise.dev/tier": tier}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def test_a_pod_is_billed_from_its_creation_to_its_end_ready_or_not() -> None:
    book = PodBook()
    book.seen(pod("a"), 10.0)
    book.seen(pod("a", ready=True), 18.0)
    book.seen(pod("a", ready=False), 40.0)  # terminating: not ready any more, still paid
    book.gone(pod("a"), 50.0)
    (life,) = book.lives.values()
    assert (life.start_seconds, life.ready_seconds, life.end_seconds) == (10.0, 18.0, 50.0)
    assert pods.replica_seconds([life], 0, 300) == 40.0
    assert pods.starting_seconds([life], 0, 300) == 8.0


def test_a_pod_that_was_there_before_is_billed_from_the_first_request_on() -> None:
    assert pods.replica_seconds([worlds.life(-30.0)], 0, 300) == 300.0
    assert pods.starting_seconds([worlds.life(-30.0)], 0, 300) == 0.0


def test_a_pod_that_never_got_ready_is_billed_and_counts_as_starting() -> None:
    never = worlds.life(10.0, 30.0, ready=1e9)
    assert pods.replica_seconds([never], 0, 300) == 20.0
    assert pods.starting_seconds([never], 0, 300) == 20.0
    assert pods.counts([never], 20.0) == (1, 0)


def test_a_list_ends_what_a_broken_watch_has_missed() -> None:
    book = PodBook()
    book.seen(pod("a", ready=True), 1.0)
    book.seen(pod("b", ready=True), 1.0)
    book.listed([pod("b", ready=True)], 60.0)
    assert {key.uid: life.end_seconds for key, life in book.lives.items()} == {"a": 60.0, "b": None}


def test_the_same_event_twice_changes_nothing_and_others_pods_are_passed_over() -> None:
    book = PodBook()
    for at in (1.0, 2.0):
        book.seen(pod("a", ready=True), at)
    book.seen({"metadata": {"namespace": "demo", "uid": "x", "labels": {"app": "envoy"}}}, 1.0)
    assert [life.start_seconds for life in book.lives.values()] == [1.0]
    book.gone(pod("a"), 5.0)
    book.gone(pod("a"), 9.0)
    assert [life.end_seconds for life in book.lives.values()] == [5.0]


def test_a_finished_pod_is_billed_no_longer() -> None:
    book = PodBook()
    book.seen(pod("a", ready=True), 0.0)
    book.seen(pod("a", phase="Failed"), 30.0)
    assert pods.replica_seconds(book.lives.values(), 0, 300) == 30.0


LIVES = st.lists(
    st.tuples(st.floats(-100, 400), st.floats(0, 400), st.floats(0, 50)).map(
        lambda item: worlds.life(item[0], item[0] + item[1], ready=item[0] + item[2])
    ),
    max_size=6,
)


@given(LIVES, st.floats(0, 300))
def test_a_window_costs_what_its_parts_cost(lives: list[pods.PodLife], cut: float) -> None:
    whole = pods.replica_seconds(lives, 0, 300)
    assert whole == pytest.approx(pods.replica_seconds(lives, 0, cut) + pods.replica_seconds(lives, cut, 300))
    assert 0 <= pods.starting_seconds(lives, 0, 300) <= whole + 1e-9


def test_a_bill_adds_replicas_and_tokens_of_its_own_arm_only() -> None:
    lives = [
        worlds.life(-10.0),  # 100 s of compact
        worlds.life(50.0, 75.0),  # 25 s
        worlds.life(0.0, tier="large", namespace="demo-all-large"),
    ]
    served = [
        worlds.record(1),
        worlds.record(2, tier="provider", prompt=1_000_000, completion=100_000),
        worlds.record(3, tier="provider", status=500, error="status 500"),
    ]
    made = bill.make(worlds.terms(), "demo", lives, served, since_seconds=0, until_seconds=100)
    costs = {tier.tier: tier.cost for tier in made.tiers}
    assert costs == {"compact": Decimal("0.0625"), "provider": Decimal("3.00")}
    assert made.cost == Decimal("3.0625")
    assert made.cost_per_hour == Decimal("110.25")
    assert made.replica_hours == pytest.approx(125 / 3600)


def test_tokens_in_the_cluster_cost_nothing_beside_the_replicas() -> None:
    assert bill.token_price(worlds.terms(), "large", 10**9, 10**9) == 0


def test_unknown_usage_at_a_provider_makes_a_bill_incomplete_never_cheaper_unseen() -> None:
    known = [worlds.record(1, tier="provider")]
    unknown = [*known, worlds.record(2, tier="provider", prompt=None, completion=None)]
    assert bill.make(worlds.terms(), "demo", [], known, since_seconds=0, until_seconds=10).complete
    made = bill.make(worlds.terms(), "demo", [], unknown, since_seconds=0, until_seconds=10)
    assert made.tiers[0].unknown_usage == 1
    assert not made.complete
