from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import by_kind, container, pod, tier

from tierwise.api.model_tier import ModelTier
from tierwise.core.plan import ReplicaBounds
from tierwise.render.children import children
from tierwise.render.drift import differs


def test_every_child_is_owned_by_its_tier_and_named_as_it() -> None:
    for child in children(tier(), ReplicaBounds(1, 1)):
        assert child["metadata"]["name"] == "compact"
        assert child["metadata"]["namespace"] == "legal"
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("ModelTier", "u-1")
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tierwise"
        assert child["metadata"]["labels"]["tierwise.dev/tier"] == "compact"


def test_services_disruption_budgets_and_spread_select_the_tiers_pods() -> None:
    kinds = by_kind(tier())
    template = kinds["Deployment"]["spec"]["template"]
    selectors = [
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in template["spec"]["topologySpreadConstraints"]),
    ]
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= template["metadata"]["labels"].items()


def test_replicas_are_the_autoscalers() -> None:
    kinds = by_kind(tier(), 2, 4)
    assert "replicas" not in kinds["Deployment"]["spec"]
    spec = kinds["HorizontalPodAutoscaler"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "compact"}


@given(st.integers(0, 50), st.integers(0, 50))
def test_an_autoscaler_never_has_bounds_that_the_api_server_refuses(low: int, high: int) -> None:
    spec = by_kind(tier(), low, high)["HorizontalPodAutoscaler"]["spec"]
    assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
    assert spec["minReplicas"] == max(1, low)


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
    spec = pod(tier())
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(tier())["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False


def test_other_services_variables_do_not_reach_the_engine() -> None:
    assert pod(tier())["enableServiceLinks"] is False


def test_a_service_serves_ready_pods_under_a_named_port() -> None:
    spec = by_kind(tier(port=9000))["Service"]["spec"]
    assert spec["ports"] == [{"name": "http", "port": 9000, "protocol": "TCP", "targetPort": "http"}]
    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec


def test_a_disruption_budget_lets_a_single_replica_be_drained() -> None:
    spec = by_kind(tier())["PodDisruptionBudget"]["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec


def test_a_slow_start_is_given_three_times_its_stated_length() -> None:
    slow = tier(replicas={"min": 1, "max": 2, "startupSeconds": 400})
    probe = container(slow)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 1200
    assert by_kind(slow)["Deployment"]["spec"]["progressDeadlineSeconds"] > 1200


def test_probes_and_annotations_follow_the_tier() -> None:
    own = tier(port=9000, health={"path": "/alive"}, metrics={"path": "/stats"})
    assert container(own)["readinessProbe"]["httpGet"] == {"path": "/alive", "port": "http", "scheme": "HTTP"}
    annotations = by_kind(own)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9000"
    assert annotations["prometheus.io/path"] == "/stats"


def test_an_overlay_cannot_take_the_selectors_label_away() -> None:
    for metadata in ({"labels": {"tierwise.dev/tier": "other", "team": "red"}}, {"labels": None}, None):
        template = by_kind(tier(podTemplate={"metadata": metadata}))["Deployment"]["spec"]["template"]
        assert template["metadata"]["labels"]["tierwise.dev/tier"] == "compact"


def test_an_overlay_merges_containers_by_name() -> None:
    overlay = {
        "spec": {
            "containers": [{"name": "engine", "volumeMounts": [{"name": "w", "mountPath": "/w"}]}, {"name": "side"}],
            "volumes": [{"name": "w", "emptyDir": {}}],
            "nodeSelector": {"gpu": "l40s"},
        }
    }
    spec = pod(tier(podTemplate=overlay))
    engine, side = spec["containers"]
    assert engine["image"] == "vllm/vllm-openai:v0.24.0"
    assert {m["mountPath"] for m in engine["volumeMounts"]} >= {"/w", "/dev/shm", "/tmp"}
    assert side == {"name": "side"}
    assert spec["nodeSelector"] == {"gpu": "l40s"}


@pytest.mark.parametrize("overlay", [{"spec": "x"}, {"metadata": [1]}, {"spec": None}, {"metadata": {"labels": "x"}}])
def test_an_overlay_of_the_wrong_shape_is_the_api_servers_to_refuse(overlay: dict[str, Any]) -> None:
    assert len(children(tier(podTemplate=overlay), ReplicaBounds(1, 1))) == 4


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


def test_cpu_is_a_resource_not_a_pods_metric() -> None:
    (entry,) = by_kind(tier(autoscaling={"signal": "CPU", "target": 60}))["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert entry == {
        "resource": {"name": "cpu", "target": {"averageUtilization": 60, "type": "Utilization"}},
        "type": "Resource",
    }


def test_keda_owns_no_second_autoscaler_and_rests_while_the_tier_is_at_zero() -> None:
    keda = tier(autoscaling={"provider": "KEDA", "target": "0.5"})
    kinds = {c["kind"]: c for c in children(keda, ReplicaBounds(2, 5), prometheus_url="http://metrics:9090")}
    assert "HorizontalPodAutoscaler" not in kinds
    scaled = kinds["ScaledObject"]
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (2, 5)
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert trigger["query"] == 'sum({__name__="vllm:num_requests_running",namespace="legal",tierwise_tier="compact"})'
    assert trigger["serverAddress"] == "http://metrics:9090"
    assert trigger["threshold"] == "0.5"
    assert "autoscaling.keda.sh/paused-replicas" not in scaled["metadata"]["annotations"]
    at_zero = by_kind(keda, 0, 0)["ScaledObject"]
    assert at_zero["metadata"]["annotations"]["autoscaling.keda.sh/paused-replicas"] == "0"


def test_users_behaviour_is_laid_over_the_default() -> None:
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 15}}
    rendered = by_kind(tier(autoscaling={"behavior": behavior}))["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert rendered["scaleDown"]["stabilizationWindowSeconds"] == 15
    assert rendered["scaleDown"]["selectPolicy"] == "Max"
    default = by_kind(tier())["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert default["scaleDown"]["stabilizationWindowSeconds"] == 120
    assert default["scaleUp"]["stabilizationWindowSeconds"] == 0


def test_equal_tiers_render_equal_bytes() -> None:
    assert repr(children(tier(), ReplicaBounds(1, 2))) == repr(children(tier(), ReplicaBounds(1, 2)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"podTemplate": {"spec": {"nodeSelector": {"gpu": "l40s"}}}}, {}),
        ({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}, {"env": [{"name": "A", "value": "1"}]}),
        ({"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}, {"resources": {"limits": {"cpu": 1}}}),
    ],
)
def test_what_a_tier_no_longer_says_is_drift(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Server-side apply removes it, but only if something is applied."""
    shown, wanted = by_kind(tier(**before))["Deployment"], by_kind(tier(**after))["Deployment"]
    assert differs(wanted, shown)
    without = {**shown, "metadata": {**shown["metadata"], "annotations": wanted["metadata"]["annotations"]}}
    assert not differs(wanted, without), "only the hash tells"
