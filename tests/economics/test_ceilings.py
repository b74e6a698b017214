"""A run under a ceiling: the operator's ledger counts what the simulator spends, and the ladder holds it."""

import pytest

from tierwise.economics import ceilings
from tierwise.economics.bench import Options
from tierwise.simulate.driver import Wanted
from tierwise.simulate.fluid import Demand
from tierwise.simulate.run import admitted


def test_the_ledger_counts_what_is_spent(hour):
    scenario, base = hour
    found = ceilings.capped_run(scenario, 10 * sum(base.cost), Options())
    assert found.counted == pytest.approx(found.spent, rel=0.05)
    assert found.denied == 0
    assert found.overspend == 0


def test_floors_give_way_before_requests_are_denied(hour):
    scenario, base = hour
    found = ceilings.capped_run(scenario, 0.4 * sum(base.cost), Options())
    assert found.overspend < 2
    assert found.denied < 5
    assert found.score.worst_loss > 1.0  # what the floor allows
    assert found.least_loss is not None
    assert found.score.worst_loss >= found.least_loss - 0.1


def test_a_ceiling_far_too_low_denies_and_holds(hour):
    scenario, base = hour
    found = ceilings.capped_run(scenario, 0.05 * sum(base.cost), Options())
    assert found.denied > 10
    assert "Deny" in found.actions
    assert found.overspend < 25  # the replicas that a tier has at least are paid for all the same


def test_gateways_let_through_what_limits_allow():
    demand = {"a": Demand(600, 1, 1, 120), "b": Demand(300, 1, 1, 60), "c": Demand(60, 1, 1, 10)}
    wanted = Wanted({}, {}, denied=frozenset({"c"}), limits=((frozenset({"a", "b"}), 7.5),))
    passed = admitted(demand, wanted, 60.0)
    assert (passed["a"].requests, passed["b"].requests, passed["c"].requests) == (300, 150, 0)
    assert passed["a"].peak == 60
    assert admitted(demand, Wanted({}, {}), 60.0) is demand
