import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import ReplicaBounds
from tierwise.render import merge
from tierwise.render.children import children
from tierwise.render.drift import differs


def tier(**in_cluster: Any) -> ModelTier:
    spec = {
        "image": "vllm/vllm-openai:v0.24.0",
        "modelSource": "Qwen/Qwen3-8B",
        "replicas": {"min": 1, "max": 6, "startupSeconds": 120},
        "price": {"perReplicaHour": "1.55"},
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}},
        **in_cluster,
    }
    return ModelTier.parse(
        {
            "apiVersion": "tierwise.dev/v1alpha1",
            "kind": "ModelTier",
            "metadata": {"name": "compact", "namespace": "legal", "uid": "u-1", "generation": 1},
            "spec": {"model": "qwen3-8b", "inCluster": spec},
        }
    )


def by_kind(model_tier: ModelTier, low: int = 2, high: int = 4) -> dict[str, dict[str, Any]]:
    return {child["kind"]: child for child in children(model_tier, ReplicaBounds(low, high))}


def container(model_tier: ModelTier) -> dict[str, Any]:
    return by_kind(model_tier)["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def test_every_child_is_owned_by_its_tier_and_named_as_it() -> None:
    for child in children(tier(), ReplicaBounds(1, 1)):
        assert child["metadata"]["name"] == "compact"
        assert child["metadata"]["namespace"] == "legal"
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("ModelTier", "u-1", True)
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tierwise"


def test_replicas_are_the_autoscalers() -> None:
    kinds = by_kind(tier(), 2, 4)
    assert "replicas" not in kinds["Deployment"]["spec"]
    spec = kinds["HorizontalPodAutoscaler"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)
    assert spec["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 0, (1, 1)), (0, 3, (1, 3)), (3, 1, (3, 3))])
def test_an_autoscaler_never_has_bounds_that_the_api_server_refuses(
    low: int, high: int, expected: tuple[int, int]
) -> None:
    spec = by_kind(tier(), low, high)["HorizontalPodAutoscaler"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == expected


def test_an_external_tier_has_no_children() -> None:
    external = ModelTier.parse(
        {
            "apiVersion": "tierwise.dev/v1alpha1",
            "kind": "ModelTier",
            "metadata": {"name": "frontier", "namespace": "legal", "uid": "u-2"},
            "spec": {"model": "provider-large-1", "external": {"url": "https://api.provider.example/v1"}},
        }
    )
    assert children(external, ReplicaBounds(1, 1)) == ()


def test_pods_meet_the_restricted_standard() -> None:
    pod = by_kind(tier())["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(tier())["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_the_engine_drains_before_it_is_stopped_within_its_grace() -> None:
    for grace in (1, 5, 120):
        pause = container(tier(terminationGracePeriodSeconds=grace))["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 1 <= pause <= max(1, grace // 2)


def test_vllm_serves_under_the_tiers_model_name() -> None:
    arguments = container(tier(args=["--max-model-len=16384"]))["args"]
    assert arguments[:2] == ["--model=Qwen/Qwen3-8B", "--served-model-name=qwen3-8b"]
    assert arguments[-1] == "--max-model-len=16384"


def test_the_users_environment_wins_over_the_presets() -> None:
    variables = {v["name"]: v["value"] for v in container(tier(env=[{"name": "HOME", "value": "/data"}]))["env"]}
    assert variables["HOME"] == "/data"


def test_a_slow_start_is_given_three_times_its_stated_length() -> None:
    probe = container(tier(replicas={"min": 1, "max": 2, "startupSeconds": 400}))["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 1200


def test_an_overlay_cannot_take_the_selectors_label_away() -> None:
    overlay = {"metadata": {"labels": {"tierwise.dev/tier": "other", "team": "red"}}}
    template = by_kind(tier(podTemplate=overlay))["Deployment"]["spec"]["template"]
    assert template["metadata"]["labels"]["tierwise.dev/tier"] == "compact"
    assert template["metadata"]["labels"]["team"] == "red"


def test_an_overlay_merges_containers_by_name() -> None:
    overlay = {
        "spec": {
            "containers": [{"name": "engine", "volumeMounts": [{"name": "w", "mountPath": "/w"}]}, {"name": "side"}],
            "volumes": [{"name": "w", "emptyDir": {}}],
            "nodeSelector": {"gpu": "l40s"},
        }
    }
    spec = by_kind(tier(podTemplate=overlay))["Deployment"]["spec"]["template"]["spec"]
    engine, side = spec["containers"]
    assert engine["image"] == "vllm/vllm-openai:v0.24.0"
    assert {m["mountPath"] for m in engine["volumeMounts"]} >= {"/w", "/dev/shm"}
    assert side == {"name": "side"}
    assert spec["nodeSelector"] == {"gpu": "l40s"}


@pytest.mark.parametrize(
    ("signal", "metric", "value"),
    [
        ("RunningRequests", "vllm_num_requests_running", "48"),
        ("WaitingRequests", "vllm_num_requests_waiting", "4"),
        ("KVCacheUsage", "vllm_kv_cache_usage_perc", "800m"),
    ],
)
def test_the_autoscaler_watches_what_the_tier_says(signal: str, metric: str, value: str) -> None:
    (entry,) = by_kind(tier(autoscaling={"signal": signal}))["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert entry["pods"]["metric"]["name"] == metric
    assert entry["pods"]["target"]["averageValue"] == value


def test_keda_owns_no_second_autoscaler() -> None:
    kinds = by_kind(tier(autoscaling={"provider": "KEDA"}), 2, 5)
    assert "HorizontalPodAutoscaler" not in kinds
    assert kinds["ScaledObject"]["spec"]["maxReplicaCount"] == 5
    assert "vllm:num_requests_running" in kinds["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]


def test_users_behaviour_is_laid_over_the_default() -> None:
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 15}}
    rendered = by_kind(tier(autoscaling={"behavior": behavior}))["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert rendered["scaleDown"]["stabilizationWindowSeconds"] == 15
    assert rendered["scaleDown"]["selectPolicy"] == "Max"
    assert (
        by_kind(tier())["HorizontalPodAutoscaler"]["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 120
    )


def test_equal_tiers_render_equal_bytes() -> None:
    assert repr(children(tier(), ReplicaBounds(1, 2))) == repr(children(tier(), ReplicaBounds(1, 2)))


# Drift


def observed(child: dict[str, Any]) -> dict[str, Any]:
    """What an API server would show: defaults added, quantities rewritten, a sidecar injected."""
    shown = copy.deepcopy(child)
    shown["status"] = {"replicas": 1}
    if child["kind"] == "Deployment":
        spec = shown["spec"]["template"]["spec"]
        spec["dnsPolicy"] = "ClusterFirst"
        spec["containers"][0]["resources"]["limits"]["memory"] = "25769803776"
        spec["containers"].append({"name": "injected"})
    return shown


def test_defaults_and_rewritten_quantities_are_no_drift() -> None:
    for child in children(tier(), ReplicaBounds(1, 2)):
        assert not differs(child, observed(child))


def test_every_changed_leaf_is_drift() -> None:
    for child in children(tier(), ReplicaBounds(1, 2)):
        for path, _value in leaves(child):
            changed = copy.deepcopy(child)
            replace(changed, path)
            assert differs(child, changed), path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))]
    return [(path, value)]


def replace(root: Any, path: tuple[Any, ...]) -> None:
    for step in path[:-1]:
        root = root[step]
    root[path[-1]] = "changed-by-somebody"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert not differs(value, copy.deepcopy(value))


@given(json_values)
def test_an_empty_overlay_changes_nothing_and_an_overlay_is_idempotent(value: Any) -> None:
    base = {"metadata": {"labels": {"x": "y"}}, "spec": {"a": [1]}}
    assert merge.overlay(base, {}) == base
    once = merge.overlay(base, {"spec": {"b": value}})
    assert merge.overlay(once, {"spec": {"b": value}}) == once
