"""What an Envoy starts with: where its configuration comes from, who may see its admin interface, and its bounds.

Everything else arrives by Delta ADS over mTLS. The client certificate is read by SDS from files, so that a renewed one
is taken without a restart; Envoy reads such secrets from a file of their own only, hence `files`.
"""

from dataclasses import dataclass
from typing import Any

from tierwise.render.envoy import clusters, concurrency, endpoints, shadow, unattended
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

LATENCY_BUCKETS_MS = (
    *(5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 650, 800),
    *(1_000, 1_250, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 6_500, 8_000),
    *(10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000, 600_000),
)
"""Upper bounds in milliseconds: no two neighbours of the seconds that objectives name are more than a third apart."""


MAX_HEAP_BYTES = 1024 * 1024 * 1024 * 4 // 5
"""With the chart's memory limit of 1 GiB: what Envoy's heap does not hold (programs, Lua, stacks) needs room too.

The chart puts four fifths of the limit that is set in the place of this number.
"""

_READY = "/ready"
_PROMETHEUS = "/stats/prometheus?usedonly"  # statistics that nothing has touched yet are most of them, and say nothing
_DRAIN = "/drain_listeners?graceful&skip_exit"
_ACTIVE = "/stats?filter=gateway.downstream_rq_active"


@dataclass(frozen=True, slots=True)
class BootstrapOptions:
    """Where things are on the gateway.

    Attributes:
        xds_host, xds_port: the operator's configuration service.
        xds_name: name that its certificate must carry.
        certificates: folder with tls.crt, tls.key and ca.crt; None: no TLS (trials on loopback only).
        files: folder that holds the files that `files` returns.
        admin_path: Unix socket of the admin interface; only Envoy's own user may open it.
        drain_port: on loopback, what the end of the Pod needs: begin to drain, and how many requests are left.
        metrics_address, metrics_port: /stats/prometheus and /ready, for Prometheus and the kubelet.
        max_heap_bytes: memory that the gateway may take; near it, it refuses requests instead of dying.
        max_connections: of clients; more are closed as soon as they are opened.
        xds_dns: follow the addresses of a headless Service; False where `xds_host` is an address.
    """

    xds_host: str
    xds_port: int = 18000
    xds_name: str = ""
    certificates: str | None = "/etc/tierwise/xds"
    files: str = "/etc/tierwise/envoy"
    admin_path: str = "/run/tierwise/admin.sock"
    drain_port: int = 9902
    metrics_address: str = "0.0.0.0"  # noqa: S104 - Prometheus and the kubelet are elsewhere
    metrics_port: int = 9901
    max_heap_bytes: int = MAX_HEAP_BYTES
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
    """The bootstrap, as JSON; `--service-node` and `--service-cluster` name the gateway, `--service-zone` its zone.

    Raises:
        InvalidResource: it does not fit Envoy's API; a defect of Tierwise.
    """
    config: dict[str, Any] = {
        "admin": {
            "address": _pipe(options),
            # No `/config_dump` above all: `tierwise envoy-config` is for that. A scrape's own query is appended.
            "allow_paths": [*({"exact": path} for path in (_READY, _DRAIN, _ACTIVE)), {"prefix": _PROMETHEUS}],
            "ignore_global_conn_limit": True,
        },
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
        "static_resources": {
            "listeners": [_metrics(options), _drain(options), shadow.listener()],
            "clusters": [_xds(options), _cluster(ADMIN_CLUSTER, _pipe(options)), shadow.cluster(), _gateways()],
        },
        "layered_runtime": {"layers": [*unattended.layered_runtime()["layers"], concurrency.bootstrap_layer()]},
        "cluster_manager": {"local_cluster_name": endpoints.GATEWAYS},
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


def _pipe(options: BootstrapOptions) -> dict[str, Any]:
    return {"pipe": {"path": options.admin_path, "mode": 0o600}}


def _cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _gateways() -> dict[str, Any]:
    """How many gateways each zone has. An operator of an older version does not say it: a gateway starts without."""
    patient = {**ADS, "initial_fetch_timeout": "5s"}
    return {"name": endpoints.GATEWAYS, "type": "EDS", "eds_cluster_config": {"eds_config": patient}}


def _xds(options: BootstrapOptions) -> dict[str, Any]:
    cluster = {
        **_cluster(XDS_CLUSTER, _address(options.xds_host, options.xds_port)),
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


def _metrics(options: BootstrapOptions) -> dict[str, Any]:
    """For Prometheus and the kubelet: two things that the admin interface says, and no other."""
    return _window(
        "metrics",
        _address(options.metrics_address, options.metrics_port),
        ("GET", "/stats/prometheus", _PROMETHEUS),
        ("GET", "/ready", _READY),
    )


def _drain(options: BootstrapOptions) -> dict[str, Any]:
    """For the Pod's own preStop script: the shell of Envoy's image opens TCP connections, and no Unix sockets."""
    return _window(
        "drain",
        _address("127.0.0.1", options.drain_port),
        ("POST", "/drain", _DRAIN),
        ("GET", "/active", _ACTIVE),
    )


def _window(name: str, address: dict[str, Any], *shown: tuple[str, str, str]) -> dict[str, Any]:
    """A listener that hands a few requests (method, path, the admin's path) on to the admin interface."""

    def route(method: str, path: str, target: str) -> dict[str, Any]:
        rewrite = {"pattern": {"regex": ".*"}, "substitution": target}
        asked = {"path": path, "headers": [{"name": ":method", "string_match": {"exact": method}}]}
        return {"match": asked, "route": {"cluster": ADMIN_CLUSTER, "regex_rewrite": rewrite}}

    routes = [route(*each) for each in shown]
    manager = extension(
        "http",
        _MANAGER,
        stat_prefix=name,
        route_config={"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        http_filters=[extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")],
        request_headers_timeout="10s",
        # Once it drains, Envoy keeps a connection 5 s after its answer; the preStop script waits for the end of each.
        drain_timeout="0.1s",
        common_http_protocol_options={"idle_timeout": "120s"},
    )
    return {
        "name": name,
        "address": address,
        "filter_chains": [{"filters": [manager]}],
        # A gateway that is full of clients is alive, and can be seen to be: it must not be restarted for it.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
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
        # New requests are refused before running ones are harmed; only what is left of those that hold most is reset,
        # when all others would die with the process.
        "actions": [
            action("shrink_heap", 0.85),
            action("disable_http_keepalive", 0.9),
            action("stop_accepting_requests", 0.92),
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.97, "saturation_threshold": 1.0}}],
            },
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
    }
