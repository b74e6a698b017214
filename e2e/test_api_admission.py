"""A real API server takes our definitions, accepts good manifests, and refuses bad ones naming field and remedy."""

import copy
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from tierwise.api.base import InvalidObject
from tierwise.api.crds import KINDS, definition
from tierwise.api.meta import GROUP, VERSION

ROOT = Path(__file__).parents[1]
NAMESPACE = "default"  # nothing is stored there: every request is a trial
QUIET = {"neighbour", "minimal", "minimal-budget", "batch"}  # objects that start no Pods
MUTANTS = int(os.environ.get("TIERWISE_MUTANTS", "600"))
SEED = int(os.environ.get("TIERWISE_SEED", "7"))
PLURALS = {model.KIND.kind: model.KIND.plural for model in KINDS}


def _load_table() -> Any:
    spec = importlib.util.spec_from_file_location("manifest_table", ROOT / "tests" / "api" / "manifest_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table = _load_table()


class Api:
    """Creates objects for trial, and returns what the API server says."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self.objects = client.CustomObjectsApi(api_client)
        self.core = client.CoreV1Api(api_client)
        self.definitions = client.ApiextensionsV1Api(api_client)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Tries; raises ApiException with the server's Status as body."""
        return self.objects.create_namespaced_custom_object(
            GROUP,
            VERSION,
            NAMESPACE,
            PLURALS[manifest["kind"]],
            manifest,
            field_validation="Strict",
            dry_run="All",
            _request_timeout=30,
        )

    def refusal(self, manifest: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
        """Message, and (field, message) of each cause."""
        with pytest.raises(client.ApiException) as refused:
            self.create(manifest)
        status = json.loads(refused.value.body)
        causes = status.get("details", {}).get("causes", [])
        return status["message"], [(cause.get("field", ""), cause.get("message", "")) for cause in causes]


@pytest.fixture(scope="module")
def api(cluster) -> Iterator[Api]:
    with config.new_client_from_config(config_file=str(cluster.kubeconfig)) as api_client:
        found = Api(api_client)
        for model in KINDS:
            _define(found, definition(model))
        yield found


def _define(api: Api, manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    try:
        api.definitions.create_custom_resource_definition(manifest, _request_timeout=30)
    except client.ApiException as error:
        if error.status != 409:
            raise
        api.definitions.patch_custom_resource_definition(name, manifest, _request_timeout=30)
    for _ in range(100):
        conditions = api.definitions.read_custom_resource_definition(name, _request_timeout=30).status.conditions or []
        if {c.type for c in conditions if c.status == "True"} >= {"Established", "NamesAccepted"}:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} was not established: {conditions}")


def test_definitions_are_structural(api: Api):
    for model in KINDS:
        name = definition(model)["metadata"]["name"]
        conditions = api.definitions.read_custom_resource_definition(name, _request_timeout=30).status.conditions
        assert not [c for c in conditions if c.type == "NonStructuralSchema" and c.status == "True"]


@pytest.mark.parametrize("manifest", table.good(), ids=lambda m: m["metadata"]["name"])
def test_good_manifest_is_accepted(api: Api, manifest):
    api.create(manifest)


@pytest.mark.parametrize("path", sorted(table.EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_example_is_accepted(api: Api, path: Path):
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] in PLURALS:
            manifest["metadata"].pop("namespace", None)
            api.create(manifest)


@pytest.mark.parametrize("row", table.bad(), ids=lambda row: row.case)
def test_bad_manifest_is_refused_with_field_and_remedy(api: Api, row):
    message, causes = api.refusal(row.manifest)
    if causes:
        assert [1 for field, words in causes if field == row.server_field and row.says in words], message
    else:  # the decoder refuses unknown fields before there are causes
        assert row.server_field in message
        assert row.says in message


# Values at the edges of every type, and some that only look right.
ODD_WORDS = """
x X a/b a.b -a a- 0 1 -1 +1 01 1. .5 1.5 1e3 1_000 100 100.5 101 0.0 NaN Infinity 0s 1s 1.5h 99999h 100000h -1s 1d
1h1m1s1ms 1s1s1s1s1s 5m0.5s UTC Local local utc Etc/GMT+3 EST Europe/London ../UTC USD http://a https://a https:// https://a:b
https://a:65536 https://a:65535 https://[::1]:80/v1 https://a/b?c https://a/# HTTPS://a https://a/%zz https://a..b
https://u@a 1Ki 1ki 1E 1e 1e-3 1m -1Ki compact frontier assistant routine Public Restricted Custom CPU Deny Notify
"""
ODD: tuple[Any, ...] = (
    *ODD_WORDS.split(),
    *("", " ", "a b", "a\n", "\u0663", "https://a b"),
    *("x" * length for length in (52, 53, 63, 64, 129, 254, 257, 1025)),
    *(0, 1, -1, 2, 50, 100, 101, 65536, 10**6, 2**31, 2**40, 2**63, 1.5, True, False),
    *([], {}, [1], [""], ["a", "a"], ["a", "b"], {"a": 1}),
)


def _leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if way:
        yield way
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in steps:
        yield from _leaves(part, (*way, step))


def _mutants(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Good manifests with one place set to an odd value, or removed; not patterns: only the server knows RE2."""
    chance = random.Random(seed)
    goods = table.good()
    for _ in range(count):
        manifest = copy.deepcopy(chance.choice(goods))
        ways = [way for way in _leaves(manifest["spec"]) if way[-1] != "pattern"]
        way = chance.choice(ways)
        target = manifest["spec"]
        for step in way[:-1]:
            target = target[step]
        if chance.random() < 0.15:
            del target[way[-1]]
            yield f"{manifest['metadata']['name']}: {way} removed", manifest
        else:
            target[way[-1]] = copy.deepcopy(chance.choice(ODD))
            yield f"{manifest['metadata']['name']}: {way} = {target[way[-1]]!r:.60}", manifest


def test_models_and_api_server_agree_on_odd_manifests(api: Api):
    """What one takes the other takes: a rule written twice (CEL and Python) says the same twice."""
    models = {model.KIND.kind: model for model in KINDS}
    disagreements = []
    refused = 0
    for what, manifest in _mutants(count=MUTANTS, seed=SEED):
        said = _verdict(lambda manifest=manifest: api.create(manifest))
        read = _verdict(lambda manifest=manifest: models[manifest["kind"]].parse(manifest))
        refused += said is not None
        if (said is None) != (read is None):
            disagreements.append(f"{what}\n   API server: {said or 'accepted'}\n   models: {read or 'accepted'}")
    assert refused > MUTANTS / 4
    assert not disagreements, "\n".join(disagreements)


def _verdict(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except client.ApiException as error:
        if error.status not in {400, 422}:
            raise
        return json.loads(error.body)["message"]
    except InvalidObject as error:
        return str(error)
    return None


def test_defaults_are_filled_in_and_equal_the_models(api: Api):
    """What the API server stores says the same as what was written: models and definitions agree on defaults."""
    models = {model.KIND.kind: model for model in KINDS}
    for manifest in table.good():
        stored = api.create(manifest)
        model = models[manifest["kind"]]
        assert model.parse(stored).spec == model.parse(manifest).spec


def test_status_is_stored_whole(api: Api):
    """Every status field that the operator may write is in the definition: nothing is pruned, nothing refused."""
    namespace = api.core.create_namespace(
        {"metadata": {"generateName": "admission-"}}, _request_timeout=30
    ).metadata.name
    try:
        for model in KINDS:
            manifest = next(m for m in table.good() if m["kind"] == model.KIND.kind and m["metadata"]["name"] in QUIET)
            place = (GROUP, VERSION, namespace, model.KIND.plural)
            api.objects.create_namespaced_custom_object(*place, manifest, _request_timeout=30)
            status = table.filled(model.model_fields["status"].annotation).dump()
            stored = api.objects.patch_namespaced_custom_object_status(
                *place,
                manifest["metadata"]["name"],
                {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "status": status},
                field_manager="admission-test",
                force=True,
                field_validation="Strict",
                _content_type="application/apply-patch+yaml",
                _request_timeout=30,
            )
            assert stored["status"] == status
            read = model.parse(stored)
            assert read.status.dump() == status
            assert not read.unreadable_status
    finally:
        api.core.delete_namespace(namespace, _request_timeout=30)
