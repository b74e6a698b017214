import json
from dataclasses import replace

import pytest

from tierwise.core.world import Key
from tierwise.economics import scenarios, variants
from tierwise.economics.loads import limit_of
from tierwise.economics.scenarios import NAMESPACE, ScenarioError


def test_truth_and_declaration_are_apart(scenario):
    """A misfitted truth leaves every manifest as it is: the planner can not know."""
    other = variants.misfit(scenario, 1.4)
    assert other.tiers[0].params.a_ms == pytest.approx(1.4 * scenario.tiers[0].params.a_ms)
    assert scenarios.tiers_of(other) == scenarios.tiers_of(scenario)
    assert scenarios.policy_of(other) == scenarios.policy_of(scenario)


def test_published_times_are_slowed_down_and_names_are_kubernetes(scenario):
    assert scenario.tiers[0].params.a_ms == pytest.approx(8.0 * 1.35)
    assert scenario.reference == "api-large"
    assert scenario.floors == {"chat": pytest.approx(79.0 * 0.99), "code": pytest.approx(72.0 * 0.99)}
    assert scenario.demand(0)["code"].prompt == pytest.approx(600)
    assert Key(NAMESPACE, "inside") in scenarios.tiers_of(scenario)


def test_limit_is_the_strictest_objective(scenario):
    # 1 - 10.8 / 40
    assert limit_of(scenario, scenario.tiers[0]) == pytest.approx(1 - 10.8 / 40)


def test_the_declared_capacity_is_of_a_request_that_no_class_has(scenario):
    declared = scenarios.declared_tokens_per_second(scenario.declared["inside"])
    assert declared == float(f"{declared:.1e}")
    assert scenarios.declared_tokens_per_second(scenario.declared["inside"].scaled(2)) == pytest.approx(
        declared / 2, rel=0.1
    )


def test_hours_cut_all_traces(directory):
    found = scenarios.load(directory / "scenarios.json", directory, hours=(1, 2))[0]
    assert found.slots == 60


def test_what_is_wrong_is_said(directory):
    with pytest.raises(ScenarioError, match="no scenario other; there are small"):
        scenarios.names(directory / "scenarios.json", ("other",))
    with pytest.raises(ScenarioError, match="must be a list"):
        (directory / "bad.json").write_text("{}")
        scenarios.names(directory / "bad.json")
    bodies = json.loads((directory / "scenarios.json").read_text())
    bodies[0]["tiers"][0]["perf_key"] = ["unknown", "gpu", 1]
    (directory / "scenarios.json").write_text(json.dumps(bodies))
    with pytest.raises(ScenarioError, match="no replica parameters for unknown"):
        scenarios.load(directory / "scenarios.json", directory)


def test_slots_without_demand_are_no_error(directory):
    (directory / "code.csv").write_text(
        "minute,requests,prompt_tokens,output_tokens,max_requests_in_10s\n"
        + "".join(f"{m},0,0,0,0\n" for m in range(30))
    )
    found = scenarios.load(directory / "scenarios.json", directory)[0]
    assert found.slots == 30
    assert found.demand(3)["code"].requests == 0
    assert replace(found, traces={name: t.part(0, 0) for name, t in found.traces.items()}).slots == 0
