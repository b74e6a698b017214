"""`tierwise plan` as a user runs it: what it prints, and what it exits with."""

import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tierwise import yaml_text
from tierwise.cli import cli

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
METRICS = EXAMPLES / "plan" / "metrics.yaml"


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)], input=stdin)


def document(*arguments):
    found = run(*arguments, "-o", "json")
    assert found.exit_code in {0, 1, 2}, found.output
    return json.loads(found.stdout)


@pytest.fixture
def changed(tmp_path):
    """A copy of the examples, without the providers that no policy uses."""
    shutil.copytree(EXAMPLES, tmp_path / "m", ignore=shutil.ignore_patterns("providers", "plan"))
    return tmp_path / "m"


def edit(folder, name, old, new, count=-1):
    file = folder / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, count))


def test_without_cluster_and_without_network(tmp_path):
    """In an empty network namespace: not even a loopback interface is up."""
    unshare = shutil.which("unshare")
    assert unshare, "util-linux is required, as for the development cluster"
    command = [unshare, "-rn" if os.geteuid() else "-n", sys.executable, "-m", "tierwise", "plan", "-f", str(EXAMPLES)]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={"HOME": str(tmp_path)}
    )
    assert found.returncode == 2, found.stderr
    assert "against nothing: all is new" in found.stdout
    assert "+ Deployment default/compact" in found.stdout
    assert "assistant/routine [Internal] -> compact 50% + large 50%" in found.stdout
    assert "key current is not among the manifests: assumed to exist" in found.stdout
    assert "unknown: demand unknown" in found.stdout
    assert "replace-me" not in found.stdout


def test_the_same_is_no_change(changed):
    found = run("-f", changed, "--against", changed)
    assert found.exit_code == 0, found.output
    assert "No change: exit code 0" in found.stdout
    again = run("-f", changed, "--against", changed, "--metrics", METRICS)
    assert again.exit_code == 0, again.output


def test_equal_input_gives_equal_output(changed):
    first, second = (run("-f", changed, "--metrics", METRICS, "-o", "yaml").stdout for _ in range(2))
    assert first == second


def test_another_spelling_of_a_default_is_no_change(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "n")
    edit(tmp_path / "n", "routingpolicy-assistant.yaml", "    mode: Auto\n", "")
    assert run("-f", tmp_path / "n", "--against", changed).exit_code == 0


def test_a_change_shows_in_objects_children_routes_and_figures(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "n")
    edit(tmp_path / "n", "modeltier-compact.yaml", "--max-model-len=16384", "--max-model-len=32768")
    edit(tmp_path / "n", "modeltier-compact.yaml", '"1.5484"', '"1.20"')
    edit(tmp_path / "n", "routingpolicy-assistant.yaml", "min: 1500", "min: 2000")
    found = run("-f", tmp_path / "n", "--against", changed, "--metrics", METRICS)
    assert found.exit_code == 2, found.output
    for line in (
        "~ ModelTier default/compact",
        "-      perReplicaHour: '1.5484'",
        "+      perReplicaHour: '1.20'",
        "~ Deployment default/compact",
        "+        - --max-model-len=32768",
        "+ assistant: assistant/complex [Internal] if body >= 8000 bytes -> compact ",
        "~ RouteConfiguration default",
    ):
        assert line in found.stdout, line
    figures = document("-f", tmp_path / "n", "--against", changed, "--metrics", METRICS)["estimate"]["default"]
    before, after = (Decimal(figures[when]["costs"]["USD"]["perMonth"]) for when in ("before", "after"))
    assert after < before
    assert f"{after - before:+,.2f}" in found.stdout


def test_an_object_that_is_left_out_is_deleted_with_its_children(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "n")
    (tmp_path / "n" / "modeltier-provider.yaml").unlink()
    found = document("-f", tmp_path / "n", "--against", changed)
    assert ("delete", "ModelTier", "provider") in [(c["action"], c["kind"], c["name"]) for c in found["objects"]]
    assert "TierNotFound" in [p["field"] for p in found["problems"]]
    kept = document("-f", tmp_path / "n", "--against", changed, "--no-prune")
    assert not kept["changed"]


def test_what_is_unknown_is_absent_and_never_zero(changed):
    figures = document("-f", changed)["estimate"]["default"]["after"]
    provider = next(tier for tier in figures["tiers"] if tier["name"] == "provider")
    assert "costPerHour" not in provider
    assert "demand of class" in provider["unknownBecause"]
    assert figures["costs"]["USD"]["lowerBound"] is True
    assert all("attainment" not in one and "requestsPerSecond" not in one for one in figures["classes"])
    (budget,) = figures["budgets"]
    assert budget["lowerBound"] is True
    assert "fits" not in budget


def test_demand_makes_the_sum_whole(changed):
    figures = document("-f", changed, "--metrics", METRICS)["estimate"]["default"]["after"]
    assert "lowerBound" not in figures["costs"]["USD"]
    by_name = {tier["name"]: tier for tier in figures["tiers"]}
    # 12 requests/s and more do not fit on one replica of 9.5; both prices are the manifests'.
    assert by_name["compact"]["replicas"] >= 2
    total = sum(Decimal(tier["costPerHour"]) for tier in by_name.values())
    assert abs(total - Decimal(figures["costs"]["USD"]["perHour"])) < Decimal("0.001")
    replicas = by_name["compact"]["replicas"] * Decimal("1.5484") + by_name["large"]["replicas"] * Decimal("7.00")
    assert total >= replicas
    assert all(one["attainment"] == 1 for one in figures["classes"])


def test_more_demand_costs_more_and_a_slow_tier_holds_less(changed, tmp_path):
    body = yaml.safe_load(METRICS.read_text())
    for one in body["classes"]:
        one["requestsPerSecond"] *= 3
        one.pop("peakRequestsPerSecond", None)
    (tmp_path / "more.yaml").write_text(yaml_text.dump(body))
    small = document("-f", changed, "--metrics", METRICS)["estimate"]["default"]["after"]
    large = document("-f", changed, "--metrics", tmp_path / "more.yaml")["estimate"]["default"]["after"]
    assert Decimal(large["costs"]["USD"]["perHour"]) > Decimal(small["costs"]["USD"]["perHour"])
    edit(changed, "modeltier-provider.yaml", "ttftP95: 900ms", "ttftP95: 9s")
    edit(changed, "modeltier-large.yaml", "max: 8", "max: 1")
    edit(changed, "modeltier-compact.yaml", "max: 6", "max: 1")
    slow = document("-f", changed, "--metrics", tmp_path / "more.yaml")["estimate"]["default"]["after"]
    assert min(one["attainment"] for one in slow["classes"]) < 1


def test_a_floor_on_average_costs_no_more_than_one_that_holds_always(changed, tmp_path):
    """What is bought once to begin with is no lasting cost."""
    shutil.copytree(changed, tmp_path / "n")
    for floor in ('minScore: "0.82"', 'maxLossPercent: "1"'):
        edit(tmp_path / "n", "routingpolicy-assistant.yaml", floor, f"holds: OnAverage\n        {floor}")
    figures = document("-f", tmp_path / "n", "--against", changed, "--metrics", METRICS)["estimate"]["default"]
    before, after = (Decimal(figures[when]["costs"]["USD"]["perMonth"]) for when in ("before", "after"))
    assert Decimal("0.9") * before < after <= before
    assert run("-f", tmp_path / "n", "--against", tmp_path / "n", "--metrics", METRICS).exit_code == 0


def test_a_ceiling_that_does_not_fit_is_told(changed):
    edit(changed, "namespacebudget.yaml", '"2500.00"', '"100.00"')
    found = run("-f", changed, "--metrics", METRICS)
    assert "does not fit: without the ladder the ceiling is reached before the period ends" in found.stdout
    (budget,) = document("-f", changed, "--metrics", METRICS)["estimate"]["default"]["after"]["budgets"]
    assert budget["fits"] is False
    assert Decimal(budget["rungs"][0]["afterHours"]) < 24


def test_tiers_without_a_price_under_a_ceiling_are_told(changed):
    edit(changed, "modeltier-compact.yaml", "    price:\n", "    # price:\n")
    edit(changed, "modeltier-compact.yaml", '      perReplicaHour: "1.5484"', "      #")
    edit(changed, "modeltier-compact.yaml", "      currency: USD\n    replicas", "    replicas")
    found = document("-f", changed, "--metrics", METRICS)
    (budget,) = found["estimate"]["default"]["after"]["budgets"]
    assert {(one["class"], one["tier"]) for one in budget["unpriced"]} == {
        ("complex", "compact"),
        ("routine", "compact"),
    }
    assert budget["lowerBound"] is True
    assert "has no price in USD" in run("-f", changed, "--metrics", METRICS).stdout


def test_problems_of_other_objects_are_the_operators_own_words(changed):
    edit(changed, "routingpolicy-assistant.yaml", "sensitivity: Internal", "sensitivity: Restricted")
    edit(changed, "modeltier-compact.yaml", "clearance: Restricted", "clearance: Public")
    edit(changed, "modeltier-large.yaml", "clearance: Restricted", "clearance: Public")
    found = run("-f", changed)
    assert found.exit_code == 1
    assert "NoClearedTier" in found.stdout
    assert "routingpolicy-assistant.yaml:" in found.stdout


def test_a_name_that_an_older_policy_has_is_a_problem_of_the_newer(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "n")
    text = (changed / "routingpolicy-assistant.yaml").read_text().replace("name: assistant", "name: aaa", 1)
    (tmp_path / "n" / "another.yaml").write_text(text)
    found = document("-f", tmp_path / "n", "--against", changed)
    assert [(p["object"], p["field"]) for p in found["problems"]] == [("RoutingPolicy default/aaa", "ModelNameTaken")]


def test_figures_for_something_that_does_not_exist_are_told(changed, tmp_path):
    (tmp_path / "x.yaml").write_text("classes: [{policy: assistant, class: rutine, requestsPerSecond: 1}]")
    assert "default/assistant/rutine is named in" in run("-f", changed, "--metrics", tmp_path / "x.yaml").stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: [{policy: a, class: b, requestsPerSecond: -1}]", "classes[0].requestsPerSecond"),
        ("classes: [{policy: a, class: b, requestsPerSecond: 1, rate: 2}]", "remove it or correct its name"),
        ("tiers: [{tier: a, ttftP95: fast}]", "tiers[0].ttftP95"),
        ("a: [", "no YAML"),
    ],
)
def test_figures_that_are_not_valid_are_an_error(changed, tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    found = run("-f", changed, "--metrics", tmp_path / "x.yaml")
    assert found.exit_code == 1
    assert says in str(found.exception)


def test_wrong_usage_is_an_error_and_not_a_change():
    assert run().exit_code == 1
    assert run("-f", EXAMPLES, "--context", "x").exit_code == 1
    assert run("-f", EXAMPLES, "--metrics", "prometheus").exit_code == 1


def test_standard_input_and_an_empty_folder(tmp_path):
    text = (EXAMPLES / "modeltier-compact.yaml").read_text()
    found = run("-f", "-", stdin=text)
    assert found.exit_code == 2
    assert "stdin:2" in found.stdout
    (tmp_path / "empty").mkdir()
    assert run("-f", tmp_path / "empty").exit_code == 1


def test_full_shows_the_new_objects_whole(changed):
    short, whole = run("-f", changed).stdout, run("-f", changed, "--full").stdout
    assert "runAsNonRoot" not in short
    assert "runAsNonRoot" in whole
    assert max(map(len, short.splitlines())) < 200


def test_values_of_secrets_show_nowhere(changed):
    (changed / "s.yaml").write_text(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: provider-key}\nstringData: {token: planted-4711}\n"
    )
    for form in ("table", "json", "yaml"):
        assert "planted-4711" not in run("-f", changed, "--full", "-o", form).output


def test_what_is_wrong_already_is_a_note_and_no_problem(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "n")
    edit(changed, "modeltier-large.yaml", "max: 8", "max: 0")
    found = document("-f", tmp_path / "n", "--against", changed)
    assert not found["problems"]
    assert any("present state" in note and "modeltier-large.yaml:" in note for note in found["notes"])
    assert ("create", "large") in [(one["action"], one["name"]) for one in found["objects"]]
