"""Install Tierwise's chart on a cluster, as a user would: with Helm and kubectl."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tierwise
from tierwise.devcluster.cluster import KubernetesCluster
from tierwise.devcluster.errors import DevClusterError

NAMESPACE = "tierwise-system"
RELEASE = "tierwise"
GATEWAY_SERVICE = "tierwise-gateway"
GATEWAY_PORT = 80

# What a development cluster needs to differ in: scrapes every second allow short windows.
VALUES: dict[str, Any] = {
    "gateway": {
        "authentication": {"mode": "Disabled"},
        "concurrency": 1,
        "drainSeconds": 5,
        "service": {"headless": True},
    },
    "operator": {"metricsIntervalSeconds": 2, "metricsWindowSeconds": 15},
}


def shared(part: str) -> Path:
    """The folder `charts`, `crds` or `examples`: beside the package in a wheel, at the top of a checkout.

    Raises:
        DevClusterError: there is neither.
    """
    package = Path(tierwise.__file__).parent
    for folder in (package / "_bundle" / part, package.parent.parent / part):
        if folder.is_dir():
            return folder
    raise DevClusterError(f"the folder {part} is missing from this installation: install the wheel or use a checkout")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Helm's values with others laid over them."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def install(cluster: KubernetesCluster, *, values: Mapping[str, Any] | None = None, wait_seconds: int = 120) -> None:
    """Apply the CRDs, install or upgrade the chart, wait until operator and gateway are available.

    Raises:
        DevClusterError: with the words of kubectl or Helm.
    """
    # Helm installs CRDs but never upgrades them; kubectl does both.
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(shared("crds")))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(shared("crds")))
    settings = [
        part
        for name, value in merged(VALUES, values or {}).items()
        for part in ("--set-json", f"{name}={json.dumps(value)}")
    ]
    cluster.helm(
        "upgrade",
        "--install",
        RELEASE,
        str(shared("charts") / "tierwise"),
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--skip-crds",
        *settings,
        timeout_seconds=wait_seconds,
    )
    for component in ("operator", "gateway"):
        cluster.kubectl(
            "--namespace",
            NAMESPACE,
            "rollout",
            "status",
            f"deployment/{RELEASE}-{component}",
            f"--timeout={wait_seconds}s",
            timeout_seconds=wait_seconds + 10,
        )


def uninstall(cluster: KubernetesCluster) -> None:
    """Remove the release and its namespace; the CRDs, and so users' objects, stay."""
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s")


def gateway_address(cluster: KubernetesCluster) -> str:
    """The gateway's "127.0.0.1:NNNN" on this machine."""
    return cluster.forward(NAMESPACE, GATEWAY_SERVICE, GATEWAY_PORT)
