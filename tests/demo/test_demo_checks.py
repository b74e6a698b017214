"""Each promise's check can fail: a planted defect turns it red."""

from dataclasses import replace

import demo_worlds as worlds
import pytest

from tierwise.demo import checks
from tierwise.demo.checks import Standing, Upstream


def logged(number: int, *, tier: str = "compact", prompt: int = 100, completion: int = 10) -> Upstream:
    return Upstream(f"r{number}", "demo", tier, "finished", prompt, completion)


SERVED = [worlds.record(number) for number in range(20)]
LOGGED = [logged(number) for number in range(20)]


def test_clients_and_upstreams_agree() -> None:
    assert checks.answered_upstream("x", SERVED, LOGGED).held


def test_a_provider_pod_knows_no_tier() -> None:
    lines = [replace(line, tier="") for line in LOGGED]
    assert checks.answered_upstream("x", SERVED, lines).held


@pytest.mark.parametrize(
    ("planted", "word"),
    [
        (LOGGED[1:], "1 unknown upstream"),
        ([*LOGGED, logged(3)], "1 served twice"),
        ([*LOGGED[1:], logged(0, tier="large")], "1 another tier"),
        ([*LOGGED[1:], logged(0, completion=11)], "1 other token counts"),
        ([replace(line, outcome="aborted") for line in LOGGED], "20 unknown upstream"),
        ([], "20 unknown upstream"),
    ],
)
def test_a_planted_difference_turns_it_red(planted: list[Upstream], word: str) -> None:
    found = checks.answered_upstream("x", SERVED, planted)
    assert not found.held
    assert word in found.text


def test_nothing_answered_proves_nothing() -> None:
    assert not checks.answered_upstream("x", [], []).held


def test_a_failed_request_turns_it_red_and_is_named() -> None:
    assert checks.no_failures("x", SERVED).held
    planted = [*SERVED, worlds.record(99, status=503, error="status 503", tier=None)]
    found = checks.no_failures("x", planted)
    assert not found.held
    assert "1 x status 503" in found.text
    assert not checks.no_failures("x", []).held


def test_a_client_that_lags_is_noticed() -> None:
    assert checks.client_kept_up(SERVED).held
    late = [replace(record, sent_seconds=record.scheduled_seconds + 0.4) for record in SERVED]
    assert not checks.client_kept_up(late).held


def test_a_mix_below_its_floor_is_noticed_and_scatter_is_not() -> None:
    assert checks.floor_kept("routine", 0.8195, 0.82, 0.001).held
    assert not checks.floor_kept("routine", 0.8195, 0.82).held
    assert not checks.floor_kept("routine", 0.81, 0.82, 0.001).held
    assert not checks.floor_kept("routine", None, 0.82).held
    assert checks.floor_kept("routine", None, None).held


def test_a_floor_that_no_class_comes_near_does_not_bind() -> None:
    assert checks.floor_binds({"routine": (0.825, 0.82), "complex": (0.7, 0.5)}).held
    assert not checks.floor_binds({"routine": (0.9, 0.82)}).held
    assert not checks.floor_binds({"routine": (None, 0.82), "complex": (0.9, None)}).held


AUTO = Standing("auto", 1.0, 0.99, 0.98)


@pytest.mark.parametrize(
    ("other", "ours", "held"),
    [
        (Standing("x", 2.0, 0.99, 0.98), AUTO, True),
        (Standing("x", 0.9, 0.99, 0.98), AUTO, False),  # dearer
        (Standing("x", 1.0, 0.99, 0.98), AUTO, False),  # no cheaper
        (Standing("x", 2.0, 1.0, 1.0), AUTO, False),  # cheaper, but serves worse
        (Standing("x", 2.0, 0.5, 0.1), replace(AUTO, worst=0.9), False),  # breaks its own promise
    ],
)
def test_cheaper_counts_only_at_the_same_attainment(other: Standing, ours: Standing, *, held: bool) -> None:
    assert checks.cheaper("x", ours, other, promised=0.95).held is held
