"""What an Envoy starts with: where its configuration comes from, its admin interface, and the port that is scraped.

Everything else arrives by Delta ADS over mTLS. The client certificate is read by SDS from files, so that a renewed one
is taken without a restart; Envoy reads such secrets from a file of their own only, hence `files`.
"""

from dataclasses import dataclass
from typing import Any

from tierwise.render.envoy import clusters
from tierwise.render.envoy.fields import ADS, extension, typed
from tierwise.render.envoy.protos import SECRET, TYPE_PREFIX, parse

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_INTERNAL = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
XDS_CLUSTER = "tierwise_xds"
ADMIN_CLUSTER = "tierwise_admin"
BOOTSTRAP_FILE = "bootstrap.json"
CERTIFICATE_FILE = "xds-certificate.json"
AUTHORITY_FILE = "xds-authority.json"

_MIB = 1024 * 1024

LATENCY_BUCKETS_MS = (
    *(5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 650, 800),
    *(1_000, 1_250, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 6_500, 8_000),
    *(10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000, 600_000),
)
"""Upper bounds in milliseconds: no two neighbours of the seconds that objectives name are more than a third apart."""


@dataclass(frozen=True, slots=True)
class BootstrapOptions:
    """Where things are on the gateway.

    Attributes:
        xds_host, xds_port: the operator's configuration service.
        xds_name: name that its certificate must carry.
        certificates: folder with tls.crt, tls.key and ca.crt; None: no TLS (trials on loopback only).
        files: folder that holds the files that `files` returns.
        admin_address, admin_port: the admin interface, for the Pod itself only.
        metrics_address, metrics_port: /stats/prometheus and /ready, for Prometheus and the kubelet.
        max_heap_bytes: memory at which the gateway refuses requests instead of dying.
        max_connections: of clients.
        xds_dns: follow the addresses of a headless Service; False where `xds_host` is an address.
    """

    xds_host: str
    xds_port: int = 18000
    xds_name: str = ""
    certificates: str | None = "/etc/tierwise/xds"
    files: str = "/etc/tierwise/envoy"
    admin_address: str = "127.0.0.1"
    admin_port: int = 9902
    metrics_address: str = "0.0.0.0"  # noqa: S104 - Prometheus and the kubelet are elsewhere
    metrics_port: int = 9901
    max_heap_bytes: int = 1024 * _MIB
    max_connections: int = 20_000
    xds_dns: bool = True


def for_namespace(namespace: str) -> BootstrapOptions:
    """The options of a gateway beside an operator in this namespace."""
    name = f"tierwise-xds.{namespace}.svc.cluster.local"
    return BootstrapOptions(xds_host=name, xds_name=name)


def files(options: BootstrapOptions) -> dict[str, dict[str, Any]]:
    """All files that a gateway starts with, as JSON by name: the bootstrap and, with TLS, where certificates are."""
    found = {BOOTSTRAP_FILE: bootstrap(options)}
    if options.certificates is not None:
        found[CERTIFICATE_FILE] = _secret_file(
            "xds_certificate",
            tls_certificate={
                "certificate_chain": {"filename": f"{options.certificates}/tls.crt"},
                "private_key": {"filename": f"{options.certificates}/tls.key"},
                "watched_directory": {"path": options.certificates},
            },
        )
        found[AUTHORITY_FILE] = _secret_file(
            "xds_authority",
            validation_context={
                "trusted_ca": {"filename": f"{options.certificates}/ca.crt"},
                "watched_directory": {"path": options.certificates},
                "match_typed_subject_alt_names": [
                    {"san_type": "DNS", "matcher": {"exact": options.xds_name or options.xds_host}}
                ],
            },
        )
    return found


def bootstrap(options: BootstrapOptions) -> dict[str, Any]:
    """The bootstrap, as JSON; `--service-node` and `--service-cluster` name the gateway.

    Raises:
        InvalidResource: it does not fit Envoy's API; a defect of Tierwise.
    """
    config: dict[str, Any] = {
        "admin": {"address": _address(options.admin_address, options.admin_port)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": XDS_CLUSTER,
                            "retry_policy": {"retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"}},
                        }
                    }
                ],
            },
            "cds_config": ADS,
            "lds_config": ADS,
        },
        "static_resources": {"listeners": [_metrics(options)], "clusters": [_xds(options), _admin(options)]},
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"prefix": "tierwise."}, "buckets": [float(bound) for bound in LATENCY_BUCKETS_MS]}
            ]
        },
        "overload_manager": _overload(options),
        # `relay` is a listener inside of Envoy.
        "bootstrap_extensions": [extension("envoy.bootstrap.internal_listener", _INTERNAL)],
    }
    parse({"@type": TYPE_PREFIX + "envoy.config.bootstrap.v3.Bootstrap", **config})
    return config


def _secret_file(name: str, **secret: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    resource = {"@type": SECRET, "name": name, **secret}
    parse(resource)
    return {"resources": [resource]}


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _cluster(name: str, address: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address, port)}}]}],
        },
    }


def _xds(options: BootstrapOptions) -> dict[str, Any]:
    cluster = {
        **_cluster(XDS_CLUSTER, options.xds_host, options.xds_port),
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: typed(
                _HTTP_OPTIONS,
                explicit_http_config={
                    "http2_protocol_options": {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
                },
            )
        },
    }
    if options.xds_dns:
        often = {"base_interval": "0.2s", "max_interval": "1s"}
        cluster["cluster_type"] = clusters.dns(dns_refresh_rate="1s", dns_failure_refresh_rate=often)
    if options.certificates is not None:

        def secret(name: str, file: str) -> dict[str, Any]:
            path = {"path": f"{options.files}/{file}"}
            return {"name": name, "sds_config": {"path_config_source": path, "resource_api_version": "V3"}}

        cluster["transport_socket"] = extension(
            "tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=options.xds_name or options.xds_host,
            common_tls_context={
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [secret("xds_certificate", CERTIFICATE_FILE)],
                "validation_context_sds_secret_config": secret("xds_authority", AUTHORITY_FILE),
            },
        )
    return cluster


def _admin(options: BootstrapOptions) -> dict[str, Any]:
    return _cluster(ADMIN_CLUSTER, options.admin_address, options.admin_port)


def _metrics(options: BootstrapOptions) -> dict[str, Any]:
    """Two paths of the admin interface, and no other: it can also stop the process and print configuration."""

    def route(path: str, target: str) -> dict[str, Any]:
        rewrite = {"pattern": {"regex": ".*"}, "substitution": target}
        return {"match": {"path": path}, "route": {"cluster": ADMIN_CLUSTER, "regex_rewrite": rewrite}}

    # Statistics that nothing has touched yet are most of them, and say nothing.
    routes = [route("/stats/prometheus", "/stats/prometheus?usedonly"), route("/ready", "/ready")]
    manager = extension(
        "http",
        _MANAGER,
        stat_prefix="metrics",
        route_config={"name": "metrics", "virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": routes}]},
        http_filters=[extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")],
    )
    return {
        "name": "metrics",
        "address": _address(options.metrics_address, options.metrics_port),
        "filter_chains": [{"filters": [manager]}],
    }


def _overload(options: BootstrapOptions) -> dict[str, Any]:
    monitors = "envoy.extensions.resource_monitors"
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"

    def action(name: str, at: float) -> dict[str, Any]:
        return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": heap, "threshold": {"value": at}}]}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            extension(heap, f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=options.max_heap_bytes),
            extension(
                connections,
                f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=options.max_connections,
            ),
        ],
        "actions": [action("shrink_heap", 0.9), action("stop_accepting_requests", 0.95)],
    }
