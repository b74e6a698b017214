"""What a run is made of: objects, load, and the rehearsal with the operator's own planner."""

import subprocess
from pathlib import Path
from typing import cast

import pytest

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.demo import load, machine, objects, simulate, stage
from tierwise.demo.errors import DemoError
from tierwise.devcluster.cluster import KubernetesCluster
from tierwise.engine import options as engine_options
from tierwise.sim import traces
from tierwise.sim.traces import TraceRequest

DOCUMENTS = stage.documents()
TERMS = objects.terms_of(DOCUMENTS)


def test_the_examples_state_terms_whose_floors_bind() -> None:
    assert TERMS.reference == "large"
    routine = next(entry for entry in TERMS.classes if entry.name == "routine")
    scores = {name: tier.quality["routine"] for name, tier in TERMS.tiers.items()}
    assert routine.floor is not None
    assert scores["compact"] < routine.floor < scores["large"] < scores["provider"]


def test_the_control_arm_is_the_same_policy_with_everything_on_the_reference_tier() -> None:
    made = objects.all_large(DOCUMENTS, TERMS, 31.4)
    assert {entry["metadata"].get("namespace", entry["metadata"]["name"]) for entry in made} == {"demo-all-large"}
    (tier,) = [ModelTier.parse(entry) for entry in made if entry["kind"] == "ModelTier"]
    (policy,) = [RoutingPolicy.parse(entry) for entry in made if entry["kind"] == "RoutingPolicy"]
    assert tier.spec.in_cluster is not None
    assert tier.spec.in_cluster.autoscaling.target is not None
    assert tier.spec.in_cluster.autoscaling.target.value == 31
    assert tier.spec.in_cluster.price is not None
    assert tier.spec.in_cluster.price.per_replica_hour == TERMS.tiers["large"].per_replica_hour
    assert policy.spec.rebalance.mode.value == "Manual"
    assert {ref.name for entry in policy.spec.classes for ref in entry.tiers} == {"large"}
    # The examples themselves are untouched.
    assert objects.terms_of(DOCUMENTS) == TERMS


def test_the_provider_expects_the_key_that_the_examples_hold() -> None:
    made = objects.provider(DOCUMENTS, "image", "provider/gpt-5")
    kinds = {entry["kind"]: entry for entry in made}
    assert kinds["Secret"]["stringData"]["token"] == "replace-me"
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    # As the simulator itself reads them: once, a wrong order left a provider that never started.
    options = engine_options.parse(container["args"][1:], {"VLLM_API_KEY": "replace-me"})
    assert options.is_provider
    assert (options.model, options.port) == (TERMS.tiers["provider"].model, 8000)
    assert kinds["Service"]["metadata"] == {
        "name": "api",
        "namespace": "provider",
        "labels": {"tierwise.dev/demo": "provider"},
    }


@pytest.mark.parametrize("taken", ["demo", "provider", "tierwise-system"])
def test_a_cluster_that_has_what_the_demo_would_delete_is_left_alone(taken: str) -> None:
    class Somebodys:
        def kubectl(self, *arguments: str, **_: object) -> subprocess.CompletedProcess[str]:
            assert arguments[0] == "get", "it only looks"
            return subprocess.CompletedProcess(arguments, 0, f"default kube-system {taken}", "")

    with pytest.raises(DemoError, match=rf"{taken}.*another\s+cluster"):
        stage.must_be_free(cast("KubernetesCluster", Somebodys()))


def test_examples_without_a_policy_are_refused() -> None:
    with pytest.raises(DemoError, match="no RoutingPolicy"):
        objects.terms_of([entry for entry in DOCUMENTS if entry["kind"] != "RoutingPolicy"])


def test_the_built_in_trace_is_the_same_for_the_same_seed_and_rises_and_falls() -> None:
    trace = load.built_in(7, 300.0)
    assert trace == load.built_in(7, 300.0)
    assert trace != load.built_in(8, 300.0)

    def rate(low: float, high: float) -> float:
        return sum(low <= request.t_seconds < high for request in trace) / (high - low)

    assert rate(135, 165) > 4 * rate(40, 70)
    assert rate(135, 165) > 2 * rate(240, 265)


def test_a_request_has_the_class_that_the_gateway_gives_it_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    traces.write(path, [TraceRequest(float(n), size, 10, "") for n, size in enumerate((10, 1400, 1490, 1600))])
    trace = load.prepared(path, 0, 60.0, TERMS)
    # A body is a little larger than its prompt: 1,490 tokens already make 6,000 bytes.
    assert [request.kind for request in trace] == ["routine", "routine", "complex", "complex"]


def test_an_empty_window_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    traces.write(path, [TraceRequest(100.0, 10, 10, "routine")])
    with pytest.raises(DemoError, match="no request"):
        load.prepared(path, 0, 60.0, TERMS)


def test_a_rehearsal_is_the_planners_own_work_and_repeatable() -> None:
    model = simulate.model_of(DOCUMENTS, stage.PROVIDER_PROFILE, 1)
    trace = [
        TraceRequest(n / 12, 900, 120, "routine") if n % 8 else TraceRequest(n / 12, 2500, 120, "complex")
        for n in range(480)
    ]
    first, moves = simulate.rehearse(model, trace, 40.0)
    assert (first, moves) == simulate.rehearse(model, trace, 40.0)
    assert first.cost > 0
    assert any("replicas for" in text for _, text in moves)


def test_the_control_arms_autoscaler_aims_below_what_a_replica_holds() -> None:
    model = simulate.model_of(DOCUMENTS, stage.PROVIDER_PROFILE, 1)
    trace = load.prepared(None, 7, 60.0, TERMS)
    low, high = (simulate.hpa_target(model, trace, 60.0, share) for share in (0.5, 1.0))
    assert low == pytest.approx(high / 2)
    assert 10 < high < 256


def test_processor_time_is_read_as_linux_writes_it() -> None:
    before = machine.parse("cpu  100 0 100 700 100 0 0 0 0 0\n")
    after = machine.parse("cpu  150 0 150 750 150 0 0 0 0 0\n")
    assert after.share_since(before) == pytest.approx(0.5)
    assert before.share_since(before) is None
