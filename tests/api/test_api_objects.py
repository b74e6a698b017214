"""Objects: immutability, lenient status, errors, and the small questions that specs answer."""

from decimal import Decimal
from types import MappingProxyType

import pytest
from manifest_table import good
from pydantic import ValidationError

from tierwise.api.base import InvalidObject
from tierwise.api.meta import ObjectKey
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity

MANIFESTS = {manifest["metadata"]["name"]: manifest for manifest in good()}


def policy(**changes) -> RoutingPolicy:
    manifest = MANIFESTS["assistant"]
    return RoutingPolicy.parse(manifest | {"spec": manifest["spec"] | changes})


def test_objects_can_not_be_changed():
    tier = ModelTier.parse(MANIFESTS["compact"])
    with pytest.raises(ValidationError, match="frozen"):
        tier.spec.in_cluster.replicas.max = 100
    with pytest.raises(TypeError):
        tier.spec.in_cluster.pod_template["spec"] = {}


def test_read_only_views_are_read():
    body = MappingProxyType({**MANIFESTS["compact"], "spec": MappingProxyType(MANIFESTS["compact"]["spec"])})
    assert ModelTier.parse(body) == ModelTier.parse(MANIFESTS["compact"])


def test_pod_template_passes_through_whole():
    tier = ModelTier.parse(MANIFESTS["compact"])
    template = MANIFESTS["compact"]["spec"]["inCluster"]["podTemplate"]
    assert tier.spec.in_cluster.pod_template.thaw() == template
    assert tier.manifest()["spec"]["inCluster"]["podTemplate"] == template


def test_clearance_defaults_to_where_the_tier_is():
    def clearance(name, **spec):
        manifest = MANIFESTS[name]
        left = {k: v for k, v in manifest["spec"].items() if k != "clearance"}
        return ModelTier.parse(manifest | {"spec": left | spec}).spec.effective_clearance

    assert clearance("compact") is Sensitivity.RESTRICTED
    assert clearance("provider") is Sensitivity.PUBLIC
    assert clearance("provider", clearance="Confidential") is Sensitivity.CONFIDENTIAL


def test_unknown_quality_is_none():
    tier = ModelTier.parse(MANIFESTS["compact"])
    assert tier.spec.score("routine") == Decimal("0.93")
    assert tier.spec.score("translation") is None
    assert tier.spec.score(None) is None


def test_class_sensitivity_is_never_below_the_policys():
    spec = policy(
        sensitivity="Confidential", classes=[{"name": "a", "tiers": [{"name": "compact"}]}], referenceTier="compact"
    ).spec
    assert spec.class_sensitivity(spec.classes[0]) is Sensitivity.CONFIDENTIAL
    spec = policy().spec
    assert spec.class_sensitivity(spec.routing_class("privileged")) is Sensitivity.CONFIDENTIAL
    assert spec.class_sensitivity(spec.routing_class("routine")) is Sensitivity.INTERNAL


@pytest.mark.parametrize(
    ("tiers", "weights"),
    [
        ([{"name": "a"}], {"a": 100}),
        ([{"name": "a", "weight": 30}, {"name": "b", "weight": 70}], {"a": 30, "b": 70}),
        ([{"name": "a", "maxWeight": 20}, {"name": "b"}], {"a": 20, "b": 80}),
        ([{"name": "a"}, {"name": "b", "minWeight": 5}], {"a": 95, "b": 5}),
        ([{"name": "a", "maxWeight": 50}, {"name": "b", "maxWeight": 30}, {"name": "c"}], {"a": 50, "b": 30, "c": 20}),
    ],
)
def test_starting_weights_keep_bounds_and_sum_to_100(tiers, weights):
    found = policy(classes=[{"name": "x", "tiers": tiers}], referenceTier="a").spec.classes[0].starting_weights()
    assert found == weights
    assert sum(found.values()) == 100


def test_tier_names_are_sorted_and_unique():
    assert policy().spec.tier_names == ("compact", "frontier")


def test_another_kind_or_version_is_refused():
    with pytest.raises(InvalidObject, match="kind: write NamespaceBudget"):
        NamespaceBudget.parse(MANIFESTS["compact"])
    with pytest.raises(InvalidObject, match=r"apiVersion: write tierwise\.dev/v1alpha1"):
        ModelTier.parse(MANIFESTS["compact"] | {"apiVersion": "tierwise.dev/v2"})


def test_all_errors_of_an_object_are_told_at_once():
    with pytest.raises(InvalidObject) as refusal:
        NamespaceBudget.parse(
            {"metadata": {"name": "b"}, "spec": {"ceiling": 12, "ladder": [{"atPercent": 0}], "x": 1}}
        )
    assert [error.field for error in refusal.value.errors] == [
        "spec.ceiling",
        "spec.ladder[0].action",
        "spec.ladder[0].atPercent",
        "spec.x",
    ]
    assert refusal.value.kind == "NamespaceBudget"
    assert refusal.value.name == "b"


def test_without_metadata_or_spec_it_is_invalid_not_a_crash():
    for body in ({}, {"metadata": None}, {"spec": []}, {"metadata": {"name": "a"}, "spec": None}):
        with pytest.raises(InvalidObject):
            ModelTier.parse(body)


def test_a_status_field_of_another_version_is_unknown_and_said_so():
    status = {
        "observedGeneration": 3,
        "spent": "12.5",
        "rung": {"atPercent": 70, "action": "Explode"},
        "somethingNew": {"a": 1},
    }
    budget = NamespaceBudget.parse(MANIFESTS["ceiling"] | {"status": status})
    assert budget.status.observed_generation == 3
    assert budget.status.spent == Decimal("12.5")
    assert budget.status.rung is None
    assert [error.field for error in budget.unreadable_status] == ["status.rung.action"]
    assert "unreadableStatus" not in budget.manifest()


@pytest.mark.parametrize("status", [None, [], "x", {}, {"conditions": None}])
def test_a_status_that_is_none_is_empty(status):
    tier = ModelTier.parse(MANIFESTS["compact"] | {"status": status})
    assert tier.status.dump() == {}


def test_metadata_that_the_server_adds_is_read():
    body = MANIFESTS["compact"] | {
        "metadata": {
            "name": "compact",
            "namespace": "legal",
            "uid": "u",
            "generation": 4,
            "creationTimestamp": "2026-11-25T07:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
            "labels": {"app": "a"},
            "annotations": {},
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "y", "controller": True}],
        }
    }
    tier = ModelTier.parse(body)
    assert tier.key == ObjectKey("legal", "compact")
    assert str(tier.key) == "legal/compact"
    assert tier.metadata.creation_timestamp.isoformat() == "2026-11-25T07:00:00+00:00"
    assert tier.metadata.labels["app"] == "a"
    assert tier.metadata.owner_references[0].controller
