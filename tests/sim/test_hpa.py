"""The autoscaler's algorithm against worked examples of Kubernetes' own."""

import pytest

from tierwise.sim.hpa import Hpa, HpaSpec


def hpa(**changes):
    return Hpa(HpaSpec(**{"target": 10.0, "min_replicas": 1, "max_replicas": 20, **changes}))


@pytest.mark.parametrize(
    ("current", "ready", "average", "wanted"),
    [
        (3, 3, 20.0, 6),
        (3, 3, 10.9, 3),  # within the tolerance of 10 %
        (3, 3, 11.1, 4),
        (3, 3, None, 3),  # no metric, no change
        (3, 0, 50.0, 3),
        (1, 1, 100.0, 5),  # at most 4 Pods or 100 % at once
        (8, 8, 100.0, 16),
        (15, 15, 100.0, 20),  # the maximum
        (4, 2, 20.0, 4),  # two that start count as idle: 2 * 20 / 4 = 10, on target
        (4, 2, 30.0, 6),  # 2 * 30 / 4 = 15 over 10, times 4
        (3, 3, 19.7, 6),
    ],
)
def test_desired(current, ready, average, wanted):
    assert hpa().desired(0.0, current, ready, average) == wanted


def test_scale_down_waits_for_the_window():
    scaler = hpa(down_stabilisation_seconds=60)
    assert scaler.desired(0.0, 5, 5, 10.0) == 5
    assert scaler.desired(15.0, 5, 5, 2.0) == 5
    assert scaler.desired(45.0, 5, 5, 4.0) == 5
    # The 5 of second 0 has left the window; the highest in it is 2 at 15 s and 2 at 45 s.
    assert scaler.desired(61.0, 5, 5, 2.0) == 2
    assert scaler.desired(62.0, 2, 2, 0.0) == 2
    assert scaler.desired(200.0, 2, 2, 0.0) == 1


def test_bounds_move():
    scaler = hpa()
    scaler.bound(4, 2)
    assert (scaler.spec.min_replicas, scaler.spec.max_replicas) == (4, 4)
    assert scaler.desired(0.0, 1, 1, 1.0) == 4
