"""What of the chart can be checked without Helm; what it renders to is tested in e2e/test_chart.py, by a real one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierwise.core import engines
from tierwise.render.envoy import bootstrap
from tierwise.runtime import zones

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tierwise"


@pytest.mark.parametrize("crd", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.name)
def test_the_charts_crds_are_the_projects(crd: Path) -> None:
    assert (CHART / "crds" / crd.name).read_text() == crd.read_text(), "run: make crds"


def test_the_chart_has_no_other_crds() -> None:
    assert {path.name for path in (CHART / "crds").iterdir()} == {path.name for path in (ROOT / "crds").iterdir()}


def test_the_version_is_the_packages() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "operator/tierwise/__init__.py").read_text())
    assert version is not None
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version[1]


def test_envoys_files_are_those_of_the_renderer() -> None:
    for name, wanted in bootstrap.files(bootstrap.for_namespace("TIERWISE_NAMESPACE")).items():
        shipped = json.loads((CHART / "files" / f"envoy-{name}").read_text())
        assert shipped == wanted, f"charts/tierwise/files/envoy-{name} is not current"


def test_a_gateway_takes_its_zone_from_where_the_operator_counts_it() -> None:
    text = (CHART / "templates" / "gateway.yaml").read_text()
    assert "- --service-zone\n            - $(POD_ZONE)\n" in text
    source = f"valueFrom: {{fieldRef: {{fieldPath: \"metadata.labels['{zones.ZONE_LABEL}']\"}}}}"
    assert f"- name: POD_ZONE\n              {source}\n" in text
    name, component = zones.SELECTOR.split("=")
    assert f'"component" "{component}"' in text
    assert f"{name}: {{{{ .component }}}}" in (CHART / "templates" / "_helpers.tpl").read_text()


def test_every_scaling_metric_of_a_preset_has_a_rule() -> None:
    text = (CHART / "templates" / "metrics-rules.yaml").read_text()
    listed = re.search(r"range concat \(list (.*?)\) \.Values", text)
    assert listed is not None
    assert sorted(re.findall(r'"([^"]+)"', listed[1])) == sorted(engines.scaling_metrics())
    assert 'replace ":" "_"' in text
    assert engines.pod_metric("vllm:num_requests_running") == "vllm_num_requests_running"


def described(values: Any, schema: dict[str, Any], path: str = "") -> None:
    """Every value has a place in the schema and every place in the schema has a value with a comment near it."""
    properties = schema.get("properties")
    if properties is None or not isinstance(values, dict):
        return
    assert schema["additionalProperties"] is False, path
    assert set(values) == set(properties) - {"global"}, path
    for name, value in values.items():
        part = properties[name]
        if "$ref" in part:
            continue
        described(value, part, f"{path}.{name}")


def test_values_and_their_schema_name_the_same() -> None:
    described(
        yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text())
    )


def test_every_value_that_a_template_reads_exists() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    read = {
        found
        for template in (CHART / "templates").iterdir()
        for found in re.findall(r"\.Values\.([A-Za-z.]+[A-Za-z])", template.read_text())
    }
    assert len(read) > 20
    for path in read:
        at: Any = values
        for step in path.split("."):
            assert step in at, path
            at = at[step]
