import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tierwise"


@pytest.mark.parametrize("crd", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.name)
def test_the_charts_crds_are_the_projects(crd: Path) -> None:
    assert (CHART / "crds" / crd.name).read_text() == crd.read_text()


def test_the_chart_has_no_other_crds() -> None:
    assert {path.name for path in (CHART / "crds").iterdir()} == {path.name for path in (ROOT / "crds").iterdir()}


def test_the_version_is_the_packages() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "operator/tierwise/__init__.py").read_text())
    assert version is not None
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version[1]


def test_the_role_never_writes_what_users_own() -> None:
    text = (CHART / "templates" / "rbac.yaml").read_text()
    text = re.sub(r"(?m)^\s*\{\{.*\}\}\s*$|\{\{-.*-\}\}", "", text)
    text = re.sub(r"\{\{.*?\}\}", "x", text)
    operator, *_others = [d for d in yaml.safe_load_all(text) if d and d["kind"] == "ClusterRole"]
    assert any("modeltiers" in rule["resources"] for rule in operator["rules"])
    for rule in operator["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "modeltiers" in rule["resources"]:
            assert set(rule["verbs"]) == {"get", "list", "watch"}
        if rule["resources"] == ["secrets"]:
            assert rule["verbs"] == ["get"]
