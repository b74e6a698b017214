"""What must stand before the first request and go after the last: cluster, chart, examples, provider, control arm."""

import concurrent.futures
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tierwise import yaml_text
from tierwise.demo import objects
from tierwise.demo.errors import DemoError
from tierwise.demo.terms import Terms
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster, KubernetesCluster
from tierwise.devcluster.existing import ExistingCluster

# Two cores carry the control plane, a dozen engines, two Envoys and the load: the operator looks every two seconds.
VALUES: dict[str, Any] = {
    "operator": {"replicas": 2, "metricsIntervalSeconds": 2, "metricsWindowSeconds": 8},
    "gateway": {"replicas": 2},
}
PROVIDER_IMAGE = "ghcr.io/tierwise/operator:demo"
PROVIDER_PROFILE = "provider/gpt-5"
READY_SECONDS = 120


@dataclass(slots=True)
class Stage:
    """What was set up.

    Attributes:
        cluster: where.
        owned: this run started the cluster, so it ends it.
        terms: of the examples.
        gateway: "127.0.0.1:NNNN".
        namespaces: that this run made.
    """

    cluster: KubernetesCluster
    owned: bool
    terms: Terms
    gateway: str = ""
    namespaces: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)


def documents() -> list[dict[str, Any]]:
    """The manifests of `examples/`, in the order in which kubectl applies them."""
    folder = install.shared("examples")
    found = []
    for path in sorted(folder.glob("*.yaml")):
        found += [entry for entry in yaml.safe_load_all(path.read_text(encoding="utf-8")) if entry]
    return found


def open_cluster(name: str, kubeconfig: Path | None, console: Console) -> tuple[KubernetesCluster, bool]:
    """A cluster to run in, and whether it is new (then it shall end with the run)."""
    if kubeconfig is not None:
        return ExistingCluster(kubeconfig), False
    running = name in clusters.running_names()
    return clusters.up(name, console=console), not running


def prepare(cluster: KubernetesCluster, *, owned: bool, control: float | None, say: Callable[[str], None]) -> Stage:
    """Install and apply everything, and wait until the policies are ready.

    The chart's roll-out and the tiers' start overlap: objects are accepted as soon as the kinds are.

    Args:
        cluster: where.
        owned: recorded in the result.
        control: target of the control arm's autoscaler; None: make no control arm.
        say: progress.
    """
    if isinstance(cluster, ExistingCluster):
        must_be_free(cluster)
    examples = documents()
    terms = objects.terms_of(examples)
    stage = Stage(cluster, owned, terms)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        crds = str(install.shared("crds"))
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", crds)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", crds)
        chart = pool.submit(install.install, cluster, values=VALUES, wait_seconds=READY_SECONDS)
        more = objects.provider(examples, PROVIDER_IMAGE, PROVIDER_PROFILE)
        if control is not None:
            more += objects.all_large(examples, terms, control)
        cluster.kubectl("apply", "-f", "-", input_text=yaml_text.dump_all([objects.namespace(objects.AUTO_NAMESPACE)]))
        # As a user would, with the files as they are.
        cluster.kubectl("apply", "-n", objects.AUTO_NAMESPACE, "-f", str(install.shared("examples")))
        cluster.kubectl("apply", "-f", "-", input_text=yaml_text.dump_all(more))
        say("examples applied: kubectl apply -n demo -f examples/")
        chart.result()
    stage.timings["chart installed"] = time.monotonic() - began
    say("chart installed: operator and gateway run")
    stage.namespaces = tuple(entry["metadata"]["name"] for entry in more if entry["kind"] == "Namespace")
    for name in (objects.AUTO_NAMESPACE, *((objects.ALL_LARGE_NAMESPACE,) if control is not None else ())):
        wait_ready(cluster, name)
    if any(entry["kind"] == "Deployment" for entry in more):
        # The gateway can not tell: a provider that does not answer is what fallback is for.
        cluster.kubectl("-n", objects.PROVIDER_NAMESPACE, "rollout", "status", "deployment/api", "--timeout=60s")
    stage.timings["tiers and policies ready"] = time.monotonic() - began
    say("tiers and policies are Ready")
    stage.gateway = install.gateway_address(cluster)
    return stage


def must_be_free(cluster: KubernetesCluster) -> None:
    """The run installs its own values and deletes its namespaces in the end: nothing of that may be somebody's.

    Raises:
        DemoError: what is there, and what to do.
    """
    wanted = {
        objects.AUTO_NAMESPACE,
        objects.ALL_LARGE_NAMESPACE,
        objects.PROVIDER_NAMESPACE,
        install.NAMESPACE,
    }
    listed = cluster.kubectl("get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}").stdout.split()
    taken = sorted(wanted & {*listed})
    if taken:
        raise DemoError(
            f"this cluster has namespaces that the demo makes, fills and deletes: {', '.join(taken)}. Run it on another"
            " cluster (without --kubeconfig it makes one), or delete them first if they are left from a demo"
        )


def wait_ready(cluster: KubernetesCluster, namespace: str) -> None:
    """What the documentation tells users to run."""
    cluster.kubectl(
        "wait",
        "-n",
        namespace,
        "--for=condition=Ready",
        "modeltiers,routingpolicies",
        "--all",
        f"--timeout={READY_SECONDS}s",
        timeout_seconds=READY_SECONDS + 10,
    )


def clear(stage: Stage) -> None:
    """End the cluster if it is ours; else delete what the run made (the definitions of the kinds stay)."""
    if isinstance(stage.cluster, Cluster) and stage.owned:
        stage.cluster.down()
        return
    names = [*stage.namespaces, objects.AUTO_NAMESPACE]
    stage.cluster.kubectl("delete", "namespace", *names, "--ignore-not-found", "--timeout=60s", check=False)
    if isinstance(stage.cluster, ExistingCluster):
        stage.cluster.helm("uninstall", install.RELEASE, "--namespace", install.NAMESPACE, "--wait")
        stage.cluster.kubectl(
            "delete", "namespace", install.NAMESPACE, "--ignore-not-found", "--timeout=60s", check=False
        )
        stage.cluster.close()
