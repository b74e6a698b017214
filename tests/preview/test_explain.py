"""`tierwise explain` from objects with their statuses, as the loop wrote them."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tierwise import planner, yaml_text
from tierwise.cli import cli
from tierwise.core import figures, realised
from tierwise.core.memory import Realising
from tierwise.core.plan import Plan
from tierwise.preview import explain, facts

sys.path.insert(0, str(Path(__file__).parents[1] / "planner"))
from api_server import Demand, Server, Truth, budget, external, in_cluster, policy, route

STEP_SECONDS = 5.0


def world(when=("ConnectFailure", "Saturated"), passed=None) -> Server:
    """A cheap tier under a floor, a dear one, a provider; load that the cheap one may not carry alone."""
    floor = {"task": "qa", "quality": {"minScore": "0.62"}}
    return Server(
        [
            in_cluster("compact", price="1.00", rps="6", quality=[{"task": "qa", "score": "0.55"}]),
            in_cluster("large", price="6.00", rps="3", quality=[{"task": "qa", "score": "0.80"}]),
            external("provider", quality=[{"task": "qa", "score": "0.85"}]),
            policy(
                "chat",
                [
                    route(
                        "all",
                        [
                            {"name": "large", "weight": 100},
                            {"name": "compact", "weight": 0},
                            {"name": "provider", "weight": 0},
                        ],
                        objective={"interTokenP95": "80ms"},
                        fallback={"when": list(when)},
                        **floor,
                    )
                ],
                referenceTier="large",
                rebalance={"interval": "5s", "cooldown": "30s", "maxStepPercent": 50},
            ),
            budget("month", "10000"),
        ],
        {("chat", "all"): Demand(8.0)},
        {"compact": Truth(), "large": Truth(idle_itl=0.03, saturation=1500.0)},
        passed=passed or {},
    )


@pytest.fixture(scope="module")
def loop():
    """The server after five minutes, and all plans."""
    server = world()
    return server, played(server, 60)


def played(server, rounds):
    """All plans of so many rounds."""
    plans = []
    for _ in range(rounds):
        server.measure(STEP_SECONDS)
        plan: Plan = planner.plan(server.world())
        plans.append(plan)
        server.carry_out(plan)
        server.control()
        server.later(STEP_SECONDS)
    return plans


@pytest.fixture
def dump(loop, tmp_path):
    return dumped(loop[0], tmp_path)


def dumped(server, folder):
    objects = [body for body in server.objects.values() if body["apiVersion"].startswith("tierwise.dev")]
    (folder / "dump.yaml").write_text(yaml_text.dump_all(objects))
    return folder / "dump.yaml"


def run(*arguments):
    return CliRunner().invoke(cli, ["explain", *map(str, arguments)])


def test_it_tells_demand_weights_cost_what_binds_and_what_else_was_weighed(dump):
    found = run("chat", "-n", "legal", "-f", dump)
    assert found.exit_code == 0, found.output
    for words in (
        "RoutingPolicy legal/chat",
        "8 requests/s (measured",
        "600 in and 200 out per request (measured)",
        "the quality floor sets the mix",
        "without QualityFloor the namespace would save",
        "all to large",
        "the cheapest that holds",
        "USD per hour for the namespace: saves",
        "replicas ready, autoscaler",
        "requests/s each (measured)",
        "gateways give each at most",
        "month          ",
    ):
        assert " ".join(words.split()) in " ".join(found.stdout.split()), words
    assert max(map(len, found.stdout.splitlines())) <= 120


SAID = "while saturated (measured, at the last decision)"


@pytest.mark.parametrize(
    ("when", "passed", "words"),
    [
        (("ConnectFailure", "Saturated"), 1.25, f"passed on 1.25 requests/s {SAID}"),
        (("ConnectFailure", "Saturated"), 0.0, f"passed on no requests {SAID}"),
        (("ConnectFailure", "Saturated"), None, None),
        (("ConnectFailure",), 1.25, None),
    ],
)
def test_what_a_saturated_tier_passed_on_is_told_where_it_is_known(tmp_path, when, passed, words):
    server = world(when, {"large": passed} if passed is not None else {})
    played(server, 15)
    found = run("chat", "-n", "legal", "-f", dumped(server, tmp_path))
    said = " ".join(found.stdout.split())
    assert said.count("passed on") == (words is not None)
    assert words is None or words in said
    large = next(
        one
        for one in json.loads(run("chat", "-n", "legal", "-f", dumped(server, tmp_path), "-o", "json").stdout)["tiers"]
        if one["name"] == "large"
    )
    assert large.get("passedOn", {}).get("provenance") == ("Measured" if words else None)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (True, "bursts quality was earned: tiers below the floor too take what"),
        (False, "bursts nothing is left of the quality that was earned"),
        (None, None),
    ],
)
def test_whether_tiers_below_the_floor_relieve_others_is_told(tmp_path, said, words):
    server = world()
    played(server, 15)
    for body in server.objects.values():
        if body["kind"] == "RoutingPolicy" and said is not None:
            body["status"]["classes"][0]["relievedBelowFloor"] = said
    told = " ".join(run("chat", "-n", "legal", "-f", dumped(server, tmp_path)).stdout.split())
    assert ("bursts" in told) == (words is not None)
    assert words is None or words in told


def test_what_was_realised_is_told_once_and_is_close_to_what_was_expected(loop, dump):
    server, plans = loop
    records = [record for plan in plans for record in plan.records]
    decisions = [record for record in records if record["record"] == "decision"]
    realised = [record for record in records if record["record"] == "realised"]
    assert decisions
    assert len(realised) == 1, "the last decision is followed by a quiet window, the others by the next decision"
    shown = server.status("RoutingPolicy", "chat")["decision"]
    real = shown["realised"]
    assert real["provenance"] == "Measured"
    assert real["seconds"] >= 60
    # Replicas and tokens at their prices, by hand.
    replicas = {n: server.status("ModelTier", n)["replicas"]["current"] for n in ("compact", "large")}
    share = server.weights("chat", "all").get("provider", 0) / 100
    tokens = 3600 * 8 * share * (600 * 0.60 + 200 * 2.40) / 1e6
    assert float(real["costPerHour"]) == pytest.approx(replicas["compact"] + 6 * replicas["large"] + tokens, rel=0.03)
    assert float(real["costPerHour"]) == pytest.approx(float(shown["expectedCostPerHour"]), rel=0.15)
    assert "realised" in run("chat", "-n", "legal", "-f", dump).stdout


@pytest.mark.parametrize(("demand", "comparable"), [(8.0, True), (7.3, True), (8.7, True), (6.8, False), (12.0, False)])
def test_another_demand_than_at_the_decision_leaves_the_saving_unknown(demand, comparable):
    start = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
    window = Realising(
        decided=start,
        start=start,
        end=start + timedelta(seconds=60),
        before_per_hour=20.0,
        expected_per_hour=10.0,
        demand=8.0,
        currency="USD",
        until=start + timedelta(seconds=60),
        cost=0.2,
        requests=60 * demand,
        seconds=60.0,
        finished=True,
    )
    found = realised.outcome(window)
    assert found["cost_per_hour"] == pytest.approx(12.0)
    assert found.get("saving_percent") == (pytest.approx(40.0) if comparable else None)
    shown = {dict(one.labels)["state"] for one in figures._saving(("namespace", "x"), window) if "saving" in one.name}
    assert shown == ({"expected", "realised"} if comparable else {"expected"})


def test_the_whole_record_says_everything_and_is_plain_json(loop):
    _, plans = loop
    record = next(record for plan in plans for record in plan.records if record["record"] == "decision")
    assert json.loads(json.dumps(record)) == record
    names = {one["name"] for one in record["inputs"]}
    assert {
        "class/all/requestsPerSecond",
        "class/all/plannedRequestsPerSecond",
        "class/all/promptTokens",
        "tier/compact/requestsPerSecondPerReplica",
        "tier/compact/pricePerReplicaHour",
        "tier/provider/outputPerMillionTokens",
    } <= names
    assert {one["name"] for one in record["options"]} >= {"all to large", "as it is", "chosen"}
    assert all("why_not" in one for one in record["options"])
    assert [one["class"] for one in record["classes"]] == ["all"]
    assert record["solver"]
    assert record["expected_cost_per_hour"] > 0


def test_figures_for_metrics_name_their_provenance(loop):
    _, plans = loop
    gauges = {gauge.name: dict(gauge.labels) for gauge in plans[-1].gauges}
    assert gauges["planned_cost_per_hour"]["provenance"] == "Estimated"
    assert {"class_binding", "solver_status", "decision_cost_per_hour", "decision_saving_percent"} <= set(gauges)
    states = {
        dict(gauge.labels)["state"]: dict(gauge.labels)["provenance"]
        for gauge in plans[-1].gauges
        if gauge.name == "decision_cost_per_hour"
    }
    assert states == {"before": "Estimated", "expected": "Estimated", "realised": "Measured"}


def test_json_and_yaml_hold_the_same_and_no_nulls(dump):
    as_json = json.loads(run("chat", "-n", "legal", "-f", dump, "-o", "json").stdout)
    assert yaml.safe_load(run("chat", "-n", "legal", "-f", dump, "-o", "yaml").stdout) == as_json
    assert "null" not in json.dumps(as_json)
    (one,) = as_json["classes"]
    assert one["binding"] == "QualityFloor"
    assert one["withoutIt"]["constraint"] == "QualityFloor"
    assert float(one["withoutIt"]["savesPerHour"]) > 0


@pytest.mark.parametrize(
    ("name", "namespace", "says"),
    [
        ("chst", "legal", "did you mean chat?"),
        ("chat", "default", "namespace legal has one of that name: give -n"),
        ("zzzz", "legal", "namespace legal has chat"),
        ("zzzz", "else", "there are legal/chat"),
    ],
)
def test_a_policy_that_does_not_exist_names_those_that_do(dump, name, namespace, says):
    found = run(name, "-n", namespace, "-f", dump)
    assert found.exit_code == 1
    assert says in str(found.exception)


def test_a_policy_that_nobody_has_looked_at_is_told_so(tmp_path):
    (tmp_path / "p.yaml").write_text(yaml_text.dump(policy("new", [route("all", ["large"])])))
    found = run("new", "-n", "legal", "-f", tmp_path / "p.yaml")
    assert found.exit_code == 0
    assert "there is no status" in found.stdout
    assert "large          does not exist" in found.stdout
    assert "nothing has moved yet" in found.stdout


def test_events_are_told_newest_first(dump):
    found = facts.from_files([str(dump)], "chat", "legal")
    items = [
        {
            "regarding": {"kind": kind, "name": name},
            "reason": "WeightsMoved",
            "note": note,
            "eventTime": datetime(2026, 11, 25, 9, minute, tzinfo=UTC).isoformat(),
        }
        for minute, kind, name, note in (
            (1, "RoutingPolicy", "chat", "first"),
            (3, "ModelTier", "large", "third"),
            (2, "RoutingPolicy", "chat", "second"),
            (4, "RoutingPolicy", "other", "not ours"),
        )
    ]
    told = facts.told(items, "chat")
    assert [one.note for one in told] == ["third", "second", "first"]
    words = explain.text(facts.Facts(found.policy, found.tiers, found.budgets, told, "here"))
    assert words.index(": third") < words.index(": second") < words.index(": first")
    assert "not ours" not in words
