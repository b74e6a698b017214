"""`tierwise run`: the operator."""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

import click

from tierwise import logs
from tierwise.settings import Settings


def default_identity() -> str:
    """The Pod's name, or a name for this process."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname().lower().split('.')[0]}-{os.getpid()}"


def default_namespace() -> str:
    """The Pod's namespace, or where the chart installs."""
    return os.environ.get("POD_NAMESPACE") or "tierwise-system"


def _names(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(sorted({name.strip() for name in value.split(",") if name.strip()}))


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(
    context_settings={"auto_envvar_prefix": "TIERWISE", "show_default": True, "max_content_width": 100},
    epilog="Each option is also an environment variable: --xds-port is TIERWISE_XDS_PORT.",
)
@click.option("--identity", default=default_identity, show_default="POD_NAME", help="Name of this replica, unique.")
@click.option("--namespace", default=default_namespace, show_default="POD_NAMESPACE", help="Where the operator runs.")
@click.option("--namespaces", default="", callback=_names, help="Namespaces to serve, with commas.  [default: all]")
@click.option("--kubeconfig", type=FILE, help="Reach the cluster by this file, not as a Pod.")
@click.option("--context", help="Context of the kubeconfig.")
@click.option("--prometheus-url", default="", help="Base URL of Prometheus. Without: no signals, weights stay.")
@click.option("--prometheus-token-file", type=FILE, help="File with a bearer token for Prometheus.")
@click.option(
    "--gateway-selector", default='tierwise_component="gateway"', help="Labels of the gateway's scrape targets."
)
@click.option("--metrics-interval-seconds", type=float, default=10.0, help="How often signals are read.")
@click.option("--metrics-window-seconds", type=int, default=60, help="Range of rates: at least four scrapes.")
@click.option("--xds-host", default="0.0.0.0", help="Address for gateways.")  # noqa: S104 - gateways are other Pods
@click.option("--xds-port", type=int, default=18000, help="Port for gateways.")
@click.option("--http-host", default="0.0.0.0", help="Address of /livez, /readyz, /metrics.")  # noqa: S104 - for the kubelet
@click.option("--http-port", type=int, default=8080, help="Port of /livez, /readyz, /metrics.")
@click.option("--certificates", type=FOLDER, help="Folder with ca.crt, tls.crt and tls.key for the gateways' channel.")
@click.option("--insecure-xds", is_flag=True, help="No TLS towards gateways. For trials on loopback only.")
@click.option("--tracing-endpoint", default="", help="host:port of an OTLP/gRPC collector for the gateways' spans.")
@click.option("--tracing-sampling-percent", type=float, default=1.0, help="Of requests whose caller does not say.")
@click.option("--leader-election/--no-leader-election", default=True, help="Off only for a trial with one replica.")
@click.option("--authentication/--no-authentication", default=True, help="Off: anybody may call every model.")
@click.option("--jwt-issuers", default="[]", help="Issuers of tokens that callers may use, as JSON.")
@click.option("--lease-name", default="tierwise-leader", help="Lease that the deciding replica holds.")
@click.option("--relist-seconds", type=float, default=300.0, help="How often everything is listed anew.")
@click.option("--api-timeout-seconds", type=float, default=5.0, help="For each request to the API server.")
@click.option("--log-format", type=click.Choice(["json", "console"]), default="json", help="Form of the log.")
@click.option(
    "--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="Least level."
)
def run(log_format: logs.LogFormat, log_level: str, **options: object) -> None:
    """Run the operator until it is stopped."""
    # The election of the Kubernetes client stamps local time as UTC.
    os.environ["TZ"] = "UTC"
    time.tzset()
    logs.configure(log_format, log_level)
    settings = Settings(**options)  # type: ignore[arg-type]  # click has converted each option to its field's type
    sys.exit(asyncio.run(_run(settings)))


async def _run(settings: Settings) -> int:
    from tierwise.runtime import assembly  # noqa: PLC0415 - half a second of imports that --help need not pay

    operator = await assembly.operator(settings)
    return await operator.run()
