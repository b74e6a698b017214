"""The definitions are current, described and bounded everywhere."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_table import CRDS, filled, good
from pydantic import BaseModel

from tierwise.api import crds, reference, schema
from tierwise.api.meta import ApiObject
from tierwise.api.shapes import SET

DOCS = Path(__file__).parents[2] / "docs" / "kinds"


def test_committed_definitions_are_current():
    files = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    assert files == crds.render(), "run `tierwise crds --output crds`"


def test_rendering_is_repeatable():
    assert crds.render() == crds.render()


@pytest.mark.parametrize("model", crds.KINDS, ids=lambda m: m.KIND.kind)
def test_reference_page_is_current(model: type[ApiObject[Any, Any]]):
    page = (DOCS / f"{model.KIND.singular}.md").read_text()
    assert page == reference.with_fields(page, model), (
        "the tables are generated: write reference.with_fields(page, model) back"
    )


@pytest.mark.parametrize("model", crds.KINDS, ids=lambda m: m.KIND.kind)
def test_manifests_in_reference_page_are_valid(model: type[ApiObject[Any, Any]]):
    page = (DOCS / f"{model.KIND.singular}.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    assert blocks
    models = {m.KIND.kind: m for m in crds.KINDS}
    for block in blocks:
        for manifest in yaml.safe_load_all(block):
            models[manifest["kind"]].parse(manifest)


def _walk(part: dict[str, Any], path: str):
    yield path, part
    for name, field in part.get("properties", {}).items():
        yield from _walk(field, f"{path}.{name}")
    if "items" in part:
        yield from _walk(part["items"], f"{path}[]")
    if isinstance(part.get("additionalProperties"), dict):
        yield from _walk(part["additionalProperties"], f"{path}.*")


def _parts():
    for model in crds.KINDS:
        root = crds.definition(model)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for name in ("spec", "status"):
            yield from _walk(root["properties"][name], f"{model.KIND.kind}.{name}")


@pytest.mark.parametrize(("path", "part"), list(_parts()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_field_is_described_and_bounded(path: str, part: dict[str, Any]):
    if not path.endswith(("[]", ".*")):
        assert part.get("description", "").endswith("."), "kubectl explain shows it: write a sentence"
        assert len(part["description"]) >= 10
    if part.get("type") == "string":
        assert "enum" in part or "maxLength" in part
    if part.get("type") == "array":
        assert "maxItems" in part
        assert not part["items"].get("properties") or "x-kubernetes-list-type" in part
    if part.get("type") == "integer":
        assert "minimum" in part
    assert ".status" not in path or "x-kubernetes-validations" not in part
    for rule in part.get("x-kubernetes-validations", ()):
        assert len(rule["message"]) > 20


def test_models_that_a_structural_schema_can_not_express_are_refused():
    class WithUnion(BaseModel):
        either: int | str

    class WithPair(BaseModel):
        pair: tuple[int, str]

    for model in (WithUnion, WithPair):
        with pytest.raises(schema.NotStructural, match=model.__name__):
            schema.structural(model)


def test_defaults_of_the_schema_are_those_of_the_models():
    """A schema default of {} for a part means: the defaults of its fields, which is what the model holds."""
    for model in crds.KINDS:
        root = crds.definition(model)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for manifest in good():
            if manifest["kind"] == model.KIND.kind:
                defaulted = manifest | {"spec": _defaulted(manifest["spec"], root["properties"]["spec"])}
                assert model.parse(defaulted).spec == model.parse(manifest).spec
                assert model.parse(manifest).manifest()["spec"].keys() == defaulted["spec"].keys()


def _defaulted(value: Any, part: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_defaulted(item, part["items"]) for item in value]
    if not isinstance(value, dict) or "properties" not in part:
        return value
    fields = part["properties"]
    given = {name: field["default"] for name, field in fields.items() if "default" in field} | value
    return {name: _defaulted(item, fields[name]) for name, item in given.items()}


@pytest.mark.parametrize("model", crds.KINDS, ids=lambda m: m.KIND.kind)
def test_no_default_is_filled_in_inside_a_list(model: type[ApiObject[Any, Any]]):
    """Else what is stored differs from what was written, for kubectl apply and Argo CD."""
    root = crds.definition(model)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert [
        path for path, part in _walk(root["properties"]["spec"], "spec") if "[]" in path and "default" in part
    ] == []


@pytest.mark.parametrize("model", crds.KINDS, ids=lambda m: m.KIND.kind)
def test_full_status_is_written_and_read(model: type[ApiObject[Any, Any]]):
    status = filled(model.model_fields["status"].annotation)
    manifest = next(m for m in good() if m["kind"] == model.KIND.kind)
    read = model.parse(manifest | {"status": status.dump()})
    assert read.status == status
    assert hash(read.status) == hash(status)
    assert not read.unreadable_status


def test_list_types_are_what_server_side_apply_needs():
    kinds = {m.KIND.kind: crds.definition(m)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for m in crds.KINDS}
    policy = kinds["RoutingPolicy"]["properties"]["status"]["properties"]
    assert policy["gateways"]["x-kubernetes-list-map-keys"] == ["name"]
    assert policy["classes"]["items"]["properties"]["weights"]["x-kubernetes-list-map-keys"] == ["tier"]
    assert kinds["RoutingPolicy"]["properties"]["spec"]["properties"]["models"].items() >= SET.items()
    for kind in kinds.values():
        assert kind["properties"]["status"]["properties"]["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
