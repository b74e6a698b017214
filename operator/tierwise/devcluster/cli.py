"""`tierwise cluster`: the development cluster from the command line."""

import shlex

import click
from rich.console import Console
from rich.table import Table

from tierwise.devcluster import build, components
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster.errors import DevClusterError, NotRunningError

MEGABYTE = 1e6

_name = click.option(
    "--name", default=clusters.DEFAULT_NAME, show_default=True, help="The cluster's name; several can run."
)


@click.group()
def cluster() -> None:
    """A real control plane with a process node, on this machine."""


@cluster.command()
@_name
@click.option("--gpus", default=64, show_default=True, type=click.IntRange(0, 4096), help="What the node says it has.")
@click.option("--scrape-interval", default="1s", show_default=True, help="How often Prometheus scrapes.")
@click.option(
    "--prometheus", default=components.DEFAULT_PROMETHEUS, show_default=True, help="What the metrics API asks."
)
def up(name: str, gpus: int, scrape_interval: str, prometheus: str) -> None:
    """Start a cluster; build its programs first if they are not there."""
    console = Console(stderr=True)
    console.print(
        f"cluster {name}: etcd, API server, controllers, scheduler, DNS, process node, metrics API, Prometheus"
    )
    try:
        started = clusters.up(name, gpus=gpus, console=console, scrape_interval=scrape_interval, prometheus=prometheus)
    except DevClusterError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"export KUBECONFIG={shlex.quote(str(started.kubeconfig))}")


@cluster.command()
@_name
@click.option("--all", "every", is_flag=True, help="All clusters that run.")
def down(name: str, *, every: bool) -> None:
    """End a cluster and remove all that it made."""
    names = clusters.running_names() if every else [name]
    try:
        for each in names:
            gone = clusters.down(each)
            click.echo(f"cluster {each} is gone" if gone else f"there is no cluster {each}", err=True)
    except DevClusterError as error:
        raise click.ClickException(str(error)) from error


@cluster.command()
@_name
def status(name: str) -> None:
    """Show the cluster's programs."""
    try:
        statuses = clusters.get(name).status()
    except NotRunningError as error:
        raise click.ClickException(str(error)) from error
    table = Table("component", "pid", "ready", "restarts", "running", "resident", title=f"cluster {name}")
    for item in statuses:
        resident = "" if item.resident_bytes is None else f"{item.resident_bytes / MEGABYTE:.0f} MB"
        pid = "" if item.pid is None else str(item.pid)
        ready = "yes" if item.ready else "no"
        table.add_row(item.name, pid, ready, str(item.restarts), f"{item.running_seconds:.0f} s", resident)
    Console().print(table)


@cluster.command()
@_name
def kubeconfig(name: str) -> None:
    """Print the path of the administrator's kubeconfig."""
    try:
        click.echo(str(clusters.get(name).kubeconfig))
    except NotRunningError as error:
        raise click.ClickException(str(error)) from error


@cluster.command(name="build")
def build_programs() -> None:
    """Build the cluster's programs, so that the first start is a quick one."""
    try:
        built = build.binaries(Console(stderr=True))
    except DevClusterError as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(built.folder))
