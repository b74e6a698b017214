"""What can be set about the operator, validated once. `tierwise run` fills it from flags and TIERWISE_* variables."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tierwise.errors import TierwiseError

_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")

_ENDPOINT = re.compile(r"^(?P<host>[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?):(?P<port>[1-9][0-9]{0,4})$")


class SettingsError(TierwiseError):
    """A setting has no usable value; the message names it and what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one operator replica runs.

    Attributes:
        identity: name of this replica: the Pod's name, unique among replicas.
        namespace: where the operator runs: its Lease, and the Pods that tell which replicas live.
        namespaces: those it serves; empty: all.
        kubeconfig, context: how to reach the cluster from outside; None: the Pod's service account, else the
            user's own.
        prometheus_url: base URL; empty: no signals (weights stay, budgets estimate).
        prometheus_token_file: bearer token; None: none.
        gateway_selector: PromQL label matchers of the gateway's scrape targets.
        metrics_interval_seconds: how often signals are read.
        metrics_window_seconds: range of rates and percentiles: at least four scrapes.
        xds_host, xds_port: where gateways connect for their configuration.
        http_host, http_port: where /livez, /readyz and /metrics are served.
        certificates: directory with ca.crt, tls.crt and tls.key of the gateway channel; None: made for this process.
        insecure_xds: no TLS on the gateway channel; for trials on loopback only.
        tracing_endpoint: host:port of an OTLP (gRPC) collector, for the gateways' spans; empty: no tracing.
        tracing_sampling_percent: of requests whose caller does not say itself whether they are traced.
        leader_election: off means: this replica decides without asking; only for a single replica in trials.
        authentication: callers of the gateway have to prove who they are; off only for trials.
        jwt_issuers: whose signed tokens they may use, as JSON (`render.envoy.consumers.read_issuers`).
        relist_seconds: how often everything is listed anew, to find what a watch has missed.
        api_timeout_seconds: for each request to the API server.
        lease_name: of the Lease that the deciding replica holds.
    """

    identity: str
    namespace: str = "tierwise-system"
    namespaces: tuple[str, ...] = ()
    kubeconfig: Path | None = None
    context: str | None = None
    prometheus_url: str = ""
    prometheus_token_file: Path | None = None
    gateway_selector: str = 'tierwise_component="gateway"'
    metrics_interval_seconds: float = 10.0
    metrics_window_seconds: int = 60
    xds_host: str = "0.0.0.0"  # noqa: S104 - gateways are other Pods
    xds_port: int = 18000
    http_host: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus are elsewhere
    http_port: int = 8080
    certificates: Path | None = None
    insecure_xds: bool = False
    tracing_endpoint: str = ""
    tracing_sampling_percent: float = 1.0
    leader_election: bool = True
    authentication: bool = True
    jwt_issuers: str = "[]"
    relist_seconds: float = 300.0
    api_timeout_seconds: float = 5.0
    lease_name: str = "tierwise-leader"

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the remedy.

        Raises:
            SettingsError: for the first setting that is wrong.
        """
        for field in ("identity", "namespace", "lease_name"):
            if not _NAME.match(getattr(self, field)):
                raise SettingsError(
                    f"{field} {getattr(self, field)!r} is no Kubernetes name: write lower case letters, digits, '-'"
                )
        for namespace in self.namespaces:
            if not _NAME.match(namespace):
                raise SettingsError(f"namespace {namespace!r} is no Kubernetes name: list names separated by commas")
        if self.prometheus_url:
            parts = urlsplit(self.prometheus_url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise SettingsError(
                    f"prometheus_url {self.prometheus_url!r}: write a URL such as http://prometheus:9090"
                )
        for field in ("xds_port", "http_port"):
            if not 0 <= getattr(self, field) <= 65_535:
                raise SettingsError(f"{field} {getattr(self, field)}: write a port, 1 to 65535, or 0 for any")
        self._check_tracing()
        if self.metrics_interval_seconds < 1:
            raise SettingsError("metrics_interval_seconds: at least 1")
        if self.metrics_window_seconds < 5:
            raise SettingsError("metrics_window_seconds: at least 5, and at least four scrape intervals")
        if self.insecure_xds and self.certificates is not None:
            raise SettingsError("insecure_xds and certificates exclude each other: keep the certificates")
        if not self.leader_election and self.namespaces == () and self.kubeconfig is None:
            raise SettingsError("leader election can only be switched off in a trial with --kubeconfig")

    def _check_tracing(self) -> None:
        if self.tracing_endpoint and not 0 < (self.tracing or ("", 0))[1] <= 65_535:
            raise SettingsError(
                f"tracing_endpoint {self.tracing_endpoint!r}: write host:port, such as collector.monitoring.svc:4317"
            )
        if not 0 <= self.tracing_sampling_percent <= 100:
            raise SettingsError(f"tracing_sampling_percent {self.tracing_sampling_percent:g}: write 0 to 100")

    @property
    def tracing(self) -> tuple[str, int] | None:
        """Host and port of the collector; None: no tracing."""
        found = _ENDPOINT.match(self.tracing_endpoint)
        return (found["host"], int(found["port"])) if found is not None else None
