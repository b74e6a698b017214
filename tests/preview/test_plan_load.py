"""What `tierwise plan` refuses, and where it says that it stands."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from tierwise import yaml_text
from tierwise.preview import load
from tierwise.preview.source import SourceError, documents

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("manifest_table_of_plan", ROOT / "tests" / "api" / "manifest_table.py")
table = importlib.util.module_from_spec(_spec)
import sys  # noqa: E402

sys.modules[_spec.name] = table
_spec.loader.exec_module(table)


def read(tmp_path, text, **options):
    (tmp_path / "a.yaml").write_text(text)
    return load.read([str(tmp_path / "a.yaml")], "demo", **options)


TIER = """\
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata:
  name: compact
spec:
  model: small
  inCluster:
    image: vllm/vllm-openai:v0.24.0
    replicas:
      min: 1
      max: 2
"""


@pytest.mark.parametrize("row", [r for r in table.bad() if not r.server_only], ids=lambda row: row.case)
def test_what_the_api_server_refuses_is_refused_at_the_same_field(tmp_path, row):
    loaded = read(tmp_path, yaml_text.dump(row.manifest))
    fields = [problem.field for problem in loaded.problems]
    assert row.field in fields or any(field.startswith(row.field) for field in fields)
    assert not loaded.objects


@pytest.mark.parametrize("manifest", table.good(), ids=lambda body: body["metadata"]["name"])
def test_what_the_api_server_takes_is_taken(tmp_path, manifest):
    loaded = read(tmp_path, yaml_text.dump(manifest))
    assert not loaded.problems
    assert len(loaded.objects) == 1


def test_a_problem_names_the_line_of_the_field(tmp_path):
    loaded = read(tmp_path, "# a comment\n---\n" + TIER.replace("min: 1", "min: 3"))
    (problem,) = loaded.problems
    assert problem.where == f"{tmp_path}/a.yaml:12"
    assert problem.field == "spec.inCluster.replicas.min"
    assert "raise max" in problem.remedy


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        (("kind: ModelTier", "kind: ModelTeir"), "kind", "write one of"),
        (("v1alpha1", "v1"), "apiVersion", "write tierwise.dev/v1alpha1"),
        (("spec:", "specs: {}\nspec:"), "specs", "remove it or correct its name"),
        (("  name: compact", "  name: compact\n  lables: {}"), "metadata.lables", "remove it or correct its name"),
        (("  name: compact", "  name: Compact"), "metadata.name", "lower-case"),
        (("  name: compact", "  name: compact\n  labels: {a: 1}"), "metadata.labels.a", "put it in quotes"),
        (("  model: small", "  model: small\n  model: large"), "model", "twice"),
        (("max: 2", "max: 2\n      maximum: 3"), "spec.inCluster.replicas.maximum", "remove it or correct its name"),
    ],
)
def test_the_envelope_is_checked_as_well(tmp_path, change, field, remedy):
    loaded = read(tmp_path, TIER.replace(*change, 1))
    assert [problem.field for problem in loaded.problems] == [field]
    assert remedy in loaded.problems[0].remedy


def test_a_name_that_would_break_metrics_is_refused_once(tmp_path):
    body = next(each for each in table.good() if each["kind"] == "RoutingPolicy")
    body["metadata"]["name"] = "a.b"
    loaded = read(tmp_path, yaml_text.dump(body))
    assert [problem.field for problem in loaded.problems] == ["metadata.name"]


def test_the_same_object_twice_is_a_problem(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.yml").write_text(TIER)
    (tmp_path / "a.yaml").write_text(TIER)
    loaded = load.read([str(tmp_path)], "demo")
    assert "is also in" in loaded.problems[0].remedy
    assert "a.yaml:1" in loaded.problems[0].remedy


def test_other_kinds_are_passed_over_and_told(tmp_path):
    loaded = read(tmp_path, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\n" + TIER)
    assert loaded.passed_over == [f"{tmp_path}/a.yaml:1: Namespace x"]
    assert list(loaded.objects) == [("ModelTier", "demo", "compact")]


def test_of_secrets_only_names_and_keys_are_kept(tmp_path):
    loaded = read(tmp_path, "apiVersion: v1\nkind: Secret\nmetadata: {name: k}\nstringData: {token: hunter2}\n")
    assert loaded.secrets == {("demo", "k"): frozenset({"token"})}
    assert "hunter2" not in repr(loaded)


def test_a_list_is_taken_apart(tmp_path):
    items = yaml_text.dump({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(TIER)]})
    assert list(read(tmp_path, items).objects) == [("ModelTier", "demo", "compact")]


def test_statuses_are_the_operators_and_do_not_count(tmp_path):
    text = TIER + "status: {replicas: {current: 9, ready: 9}}\n"
    assert "status" not in next(iter(read(tmp_path, text).objects.values()))
    assert "status" in next(iter(read(tmp_path, text, keep_status=True).objects.values()))


def test_yaml_is_read_as_kubernetes_reads_it():
    (found,) = documents("a: 2026-11-25\nb: 12:30\nc: 1e3\nd: 0x10\ne: on\nf: 010\n", "x")
    assert found.value == {"a": "2026-11-25", "b": "12:30", "c": 1000.0, "d": 16, "e": True, "f": 8}


def test_text_that_is_no_yaml_is_a_problem_with_its_line(tmp_path):
    loaded = read(tmp_path, "a: [\n")
    assert loaded.problems[0].where.startswith(f"{tmp_path}/a.yaml:")
    assert "no YAML" in loaded.problems[0].remedy


def test_a_path_that_does_not_exist_is_an_error():
    with pytest.raises(SourceError, match="no such file"):
        load.read(["/nowhere/at/all"], "demo")
