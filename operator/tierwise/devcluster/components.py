"""The programs of one cluster and their command lines: what upstream's installers would set, where it matters."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from tierwise.devcluster import certificates, images
from tierwise.devcluster.build import Binaries
from tierwise.devcluster.paths import State

NODE_ADDRESS = "10.244.0.1"
POD_NETWORK_BITS = 16
API_PORT = 6443
METRICS_PORT = 6444
DNS_READY_PORT = 8181
SERVICE_NETWORK = "10.96.0.0/16"
# The first address of the Service network is always the API server's own Service.
API_SERVICE_ADDRESS = "10.96.0.1"
DEFAULT_PROMETHEUS = "http://prometheus.monitoring.svc.cluster.local:9090"

NODE_NAME = "process-node"


class Component(TypedDict):
    """One program, as the supervisor reads it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    ready: str  # URL that answers 200 when it serves; empty: ready once started
    needs: list[str]


@dataclass(frozen=True, slots=True)
class Options:
    """What the one who starts a cluster may choose."""

    gpus: int = 64
    prometheus: str = DEFAULT_PROMETHEUS


def write(state: State, name: str, binaries: Binaries, api_port: int, options: Options) -> None:
    """Write every file that the programs read. ``api_port`` is the API server's on this machine's loopback."""
    pki = _Pki.make(state.pki)
    inside = f"https://{NODE_ADDRESS}:{API_PORT}"
    certificates.kubeconfig(
        state.kubeconfig,
        server=f"https://127.0.0.1:{api_port}",
        issuer=pki.ca,
        client=pki.admin,
        name=f"tierwise-{name}",
    )
    certificates.kubeconfig(state.inner_kubeconfig, server=inside, issuer=pki.ca, client=pki.admin, name=name)
    for pair, file in (
        (pki.controller_manager, "controller-manager"),
        (pki.scheduler, "scheduler"),
        (pki.node, "node"),
    ):
        certificates.kubeconfig(state.pki / f"{file}.kubeconfig", server=inside, issuer=pki.ca, client=pair, name=file)
    state.images.write_text(json.dumps(images.table(binaries), indent=2) + "\n", encoding="utf-8")
    state.metrics_rules.write_text("rules: []\nexternalRules: []\n", encoding="utf-8")
    state.resolv_conf.write_text(
        f"nameserver {NODE_ADDRESS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n", encoding="utf-8"
    )
    (state.root / "audit-policy.json").write_text(json.dumps(_audit_policy(), indent=2) + "\n", encoding="utf-8")
    (state.root / "Corefile").write_text(_corefile(state), encoding="utf-8")
    config = {
        "name": name,
        "state": str(state.root),
        "address": f"{NODE_ADDRESS}/{POD_NETWORK_BITS}",
        "resolv": str(state.resolv_conf),
        "kubeconfig": str(state.inner_kubeconfig),
        "apiAddress": f"{NODE_ADDRESS}:{API_PORT}",
        "components": _components(state, binaries, pki, options),
    }
    state.config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Pki:
    """Who is who in the cluster."""

    ca: certificates.Pair
    front_proxy_ca: certificates.Pair
    front_proxy: certificates.Pair
    server: certificates.Pair
    kubelet_client: certificates.Pair
    admin: certificates.Pair
    controller_manager: certificates.Pair
    scheduler: certificates.Pair
    node: certificates.Pair
    tokens_private: Path
    tokens_public: Path

    @classmethod
    def make(cls, folder: Path) -> "_Pki":
        ca = certificates.authority(folder, "ca")
        front_proxy_ca = certificates.authority(folder, "front-proxy-ca")
        hosts = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            NODE_ADDRESS,
            API_SERVICE_ADDRESS,
        ]
        masters = ["system:masters"]
        private, public = certificates.signing_key(folder, "service-accounts")
        return cls(
            ca=ca,
            front_proxy_ca=front_proxy_ca,
            front_proxy=certificates.certificate(
                folder, "front-proxy", front_proxy_ca, common_name="front-proxy-client"
            ),
            server=certificates.certificate(folder, "server", ca, common_name="kube-apiserver", hosts=hosts),
            kubelet_client=certificates.certificate(
                folder, "kubelet-client", ca, common_name="kube-apiserver-kubelet-client"
            ),
            admin=certificates.certificate(folder, "admin", ca, common_name="admin", organizations=masters),
            controller_manager=certificates.certificate(
                folder, "controller-manager", ca, common_name="system:kube-controller-manager"
            ),
            scheduler=certificates.certificate(folder, "scheduler", ca, common_name="system:kube-scheduler"),
            # The node reads every ConfigMap and Secret and asks for tokens: it has no NodeRestriction.
            node=certificates.certificate(
                folder, "node", ca, common_name=f"system:node:{NODE_NAME}", organizations=masters
            ),
            tokens_private=private,
            tokens_public=public,
        )


def _components(state: State, binaries: Binaries, pki: _Pki, options: Options) -> list[Component]:
    def component(
        name: str, *arguments: str, ready: str = "", needs: tuple[str, ...] = ("kube-apiserver",)
    ) -> Component:
        argv = [str(binaries.devcluster), name, *arguments]
        return {"name": name, "argv": argv, "env": {}, "ready": ready, "needs": list(needs)}

    controller_manager = str(state.pki / "controller-manager.kubeconfig")
    scheduler = str(state.pki / "scheduler.kubeconfig")
    node = str(state.pki / "node.kubeconfig")
    return [
        component("etcd", *_etcd(state), ready="http://127.0.0.1:2379/health", needs=()),
        component(
            "kube-apiserver", *_api_server(state, pki), ready=f"https://127.0.0.1:{API_PORT}/readyz", needs=("etcd",)
        ),
        component(
            "kube-controller-manager",
            f"--kubeconfig={controller_manager}",
            f"--authentication-kubeconfig={controller_manager}",
            f"--authorization-kubeconfig={controller_manager}",
            f"--service-account-private-key-file={pki.tokens_private}",
            f"--root-ca-file={pki.ca.certificate_file}",
            f"--cert-dir={state.pki}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            # A test does not want to wait 15 s for the next look, nor 5 minutes until a new Pod counts.
            "--horizontal-pod-autoscaler-sync-period=5s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=10s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
            ready="https://127.0.0.1:10257/healthz",
        ),
        component(
            "kube-scheduler",
            f"--kubeconfig={scheduler}",
            f"--authentication-kubeconfig={scheduler}",
            f"--authorization-kubeconfig={scheduler}",
            f"--cert-dir={state.pki}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            ready="https://127.0.0.1:10259/healthz",
        ),
        component(
            "coredns", "-conf", str(state.root / "Corefile"), ready=f"http://{NODE_ADDRESS}:{DNS_READY_PORT}/ready"
        ),
        component(
            "node",
            f"--name={NODE_NAME}",
            f"--state={state.root}",
            f"--images={state.images}",
            f"--kubeconfig={node}",
            f"--address={NODE_ADDRESS}",
            f"--api-port={API_PORT}",
            f"--tls-cert={pki.server.certificate_file}",
            f"--tls-key={pki.server.key_file}",
            f"--client-ca={pki.ca.certificate_file}",
            f"--gpus={options.gpus}",
        ),
        component(
            "metrics",
            f"--lister-kubeconfig={state.inner_kubeconfig}",
            f"--authentication-kubeconfig={state.inner_kubeconfig}",
            f"--authorization-kubeconfig={state.inner_kubeconfig}",
            f"--secure-port={METRICS_PORT}",
            f"--bind-address={NODE_ADDRESS}",
            f"--tls-cert-file={pki.server.certificate_file}",
            f"--tls-private-key-file={pki.server.key_file}",
            f"--prometheus={options.prometheus}",
            f"--rules={state.metrics_rules}",
            ready=f"https://{NODE_ADDRESS}:{METRICS_PORT}/readyz",
        ),
    ]


def _etcd(state: State) -> list[str]:
    return [
        f"--data-dir={state.root / 'etcd'}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        # The data goes with the cluster.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _api_server(state: State, pki: _Pki) -> list[str]:
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--cert-dir={state.pki}",
        f"--advertise-address={NODE_ADDRESS}",
        "--bind-address=0.0.0.0",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki.server.certificate_file}",
        f"--tls-private-key-file={pki.server.key_file}",
        f"--client-ca-file={pki.ca.certificate_file}",
        "--authorization-mode=RBAC",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki.tokens_public}",
        f"--service-account-signing-key-file={pki.tokens_private}",
        f"--kubelet-certificate-authority={pki.ca.certificate_file}",
        f"--kubelet-client-certificate={pki.kubelet_client.certificate_file}",
        f"--kubelet-client-key={pki.kubelet_client.key_file}",
        "--kubelet-preferred-address-types=InternalIP",
        "--enable-aggregator-routing=true",
        f"--proxy-client-cert-file={pki.front_proxy.certificate_file}",
        f"--proxy-client-key-file={pki.front_proxy.key_file}",
        f"--requestheader-client-ca-file={pki.front_proxy_ca.certificate_file}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--audit-policy-file={state.root / 'audit-policy.json'}",
        f"--audit-log-path={state.audit_log}",
        "--audit-log-format=json",
        "--profiling=false",
    ]


def _audit_policy() -> dict[str, object]:
    """Every write by whomever, and every request by service accounts outside the control plane; never bodies."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
            {
                "level": "None",
                "userGroups": ["system:masters", "system:serviceaccounts:kube-system", "system:unauthenticated"],
            },
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    }


def _corefile(state: State) -> str:
    return f""".:53 {{
    bind {NODE_ADDRESS}
    errors
    ready {NODE_ADDRESS}:{DNS_READY_PORT}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {state.inner_kubeconfig}
        ttl 1
    }}
    loadbalance
}}
"""
