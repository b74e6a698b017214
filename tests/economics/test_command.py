import json

import pytest
from click.testing import CliRunner

from tierwise.economics import table
from tierwise.economics.__main__ import main, wanted


def run(directory, *more):
    arguments = ["--data", str(directory), "--hours", "0.2", "--processes", "1", *more]
    return CliRunner().invoke(main, arguments)


def test_other_data_and_no_reference_figures(directory):
    made = run(directory, "--runs", "bound,baselines,planner")
    assert made.exit_code == 0, made.output
    for text in (
        "small",
        "offline bound (LP)",
        "perfect-knowledge replay",
        "all-large",
        "HPA 70%",
        "Tierwise",
        "simulated",
    ):
        assert text in made.output
    assert "reference's" not in made.output


def test_json_has_what_the_table_has(directory):
    found = json.loads(run(directory, "--runs", "bound,planner", "--json").output)
    assert found["small"]["planner"]["rows"]["planner"]["usd_per_hour"] > 0
    assert found["small"]["bound"]["bound"] <= found["small"]["bound"]["replay"]


def without(directory, change):
    file = directory / "scenarios.json"
    bodies = json.loads(file.read_text())
    change(bodies[0])
    file.write_text(json.dumps(bodies))


def test_odd_scenarios_run(directory):
    """Providers alone; a class without a request; an objective that nothing keeps."""
    everything = ("--runs", "bound,baselines,planner,replica-lost,confidential,provider-outage")

    def providers_alone(body):
        body["tiers"] = [tier for tier in body["tiers"] if tier["kind"] == "api"]

    without(directory, providers_alone)
    made = run(directory, *everything)
    assert made.exit_code == 0, made.output
    assert "does not apply: no tier has replicas" in made.output


def test_a_class_without_requests(directory):
    header = "minute,requests,prompt_tokens,output_tokens,max_requests_in_10s\n"
    (directory / "code.csv").write_text(header + "".join(f"{minute},0,0,0,0\n" for minute in range(30)))
    made = run(directory, "--runs", "bound,baselines,planner")
    assert made.exit_code == 0, made.output
    assert "Tierwise" in made.output


def test_an_objective_that_nothing_keeps_is_said(directory):
    def impossible(body):
        body["tiers"] = body["tiers"][:1]
        body["reference_tier"] = "inside"
        for each in body["classes"]:
            each["slo"]["itl_ms"] = 1

    without(directory, impossible)
    made = run(directory, "--runs", "bound,planner")
    assert made.exit_code == 0, made.output
    assert "no tier keeps the objective" in made.output
    assert "Tierwise" in made.output


def test_what_can_not_be_run_is_said(directory):
    assert "no scenario nowhere" in run(directory, "--only", "nowhere").output
    assert "no run sometimes" in run(directory, "--runs", "sometimes").output
    assert run(directory, "--hours", "soon").exit_code != 0
    assert wanted("", faults=False, misfit=False, ceilings=False) == ["bound", "baselines", "planner", "day", "step"]


@pytest.mark.parametrize(("ours", "holds"), [(100.0, True), (101.9, True), (102.1, False), (97.0, False)])
def test_a_bound_that_disagrees_is_told(ours, holds):
    found = table.checks("any", {"bound": {"bound": ours}}, {"lp_lower_1min_usd_h": 100.0})
    assert [check.holds for check in found] == [holds]
    told = table.summary({"any": {"bound": {"bound": ours}}}, {"any": {"lp_lower_1min_usd_h": 100.0}})
    assert bool(told) is not holds


def test_dominance_needs_cost_and_attainment():
    one = {"usd_per_hour": 10.0, "attainment": 99.0}
    assert table.dominates(one, {"usd_per_hour": 11.0, "attainment": 99.0})
    assert not table.dominates(one, {"usd_per_hour": 9.0, "attainment": 99.0})
    assert not table.dominates(one, {"usd_per_hour": 11.0, "attainment": 99.5})
