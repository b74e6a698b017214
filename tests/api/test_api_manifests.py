"""The models read every good manifest and refuse every bad one, naming field and remedy; e2e asks an API server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from manifest_table import EXAMPLES, BadManifest, bad, good

from tierwise.api.base import ApiModel, InvalidObject, Rule
from tierwise.api.crds import KINDS
from tierwise.api.meta import ApiObject

MODELS: dict[str, type[ApiObject[Any, Any]]] = {model.KIND.kind: model for model in KINDS}


@pytest.mark.parametrize("manifest", good(), ids=lambda m: m["metadata"]["name"])
def test_good_manifest_is_read_and_written_back(manifest):
    model = MODELS[manifest["kind"]]
    read = model.parse(manifest)
    again = model.parse(read.manifest())
    assert again == read
    assert hash(again) == hash(read)
    assert _holds(read.manifest()["spec"], manifest["spec"])


@pytest.mark.parametrize("row", [row for row in bad() if not row.server_only], ids=lambda row: row.case)
def test_bad_manifest_is_refused_with_field_and_remedy(row: BadManifest):
    with pytest.raises(InvalidObject) as refusal:
        MODELS[row.manifest["kind"]].parse(row.manifest)
    assert [e for e in refusal.value.errors if e.field == row.field and row.model in e.remedy], str(refusal.value)


def test_the_table_is_long_enough_and_has_no_two_rows_of_a_name():
    cases = [row.case for row in bad()]
    assert len(set(cases)) == len(cases) >= 40


# Under examples/plan are figures for `tierwise plan`, no manifests.
MANIFESTS = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "plan")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_example_is_valid(path: Path):
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] in MODELS:
            MODELS[manifest["kind"]].parse(manifest)


def _holds(whole: Any, part: Any) -> bool:
    """Everything that the user wrote is still there, and says the same."""
    if isinstance(part, dict):
        return all(key in whole and _holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(_holds(w, p) for w, p in zip(whole, part, strict=True))
    return whole == part or str(whole) == str(part)


def test_every_rule_is_broken_by_some_manifest_of_the_table():
    """A rule that nothing breaks could say anything; e2e checks each row's words against the API server's."""
    rules = {rule.message for model in KINDS for rule in _rules(model)}
    said = set()
    for row in bad():
        try:
            MODELS[row.manifest["kind"]].parse(row.manifest)
        except InvalidObject as error:
            said |= {found.remedy for found in error.errors}
        else:
            said |= {message for message in rules if row.says in message}
    assert rules - said == set()


def _rules(model: Any) -> Iterator[Rule]:
    if isinstance(model, type) and issubclass(model, ApiModel):
        yield from model.RULES
        for field in model.model_fields.values():
            yield from _rules(field.annotation)
    for part in get_args(model):
        yield from _rules(part)
