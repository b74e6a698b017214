"""`tierwise plan`: what a change would do, before it is applied."""

import asyncio
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tierwise.preview import cluster, document, load, metrics, output, preview, state
from tierwise.preview.load import Loaded, Problem
from tierwise.preview.metrics import Metrics
from tierwise.preview.source import SourceError, documents
from tierwise.preview.state import State
from tierwise.runtime.assembly import gateway_options
from tierwise.settings import Settings

EXIT_SAME, EXIT_ERROR, EXIT_CHANGED = 0, 1, 2
PROMETHEUS = "prometheus"
CLUSTER = "cluster"


class ErrorsExitOne(click.Command):
    """A command whose exit code 2 means something else than wrong usage."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, with exit code 1 for wrong usage."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _wrong_usage(error) from error

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click
        """Likewise."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _wrong_usage(error) from error


class WrongUsage(click.UsageError):
    """Wrong usage, with the exit code of errors."""

    exit_code = EXIT_ERROR


def _wrong_usage(error: click.UsageError) -> WrongUsage:
    return WrongUsage(error.format_message(), error.ctx)


@click.command(
    cls=ErrorsExitOne,
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="Exit codes: 0 nothing would change; 2 something would; 1 a problem, or wrong usage.",
)
@click.option(
    "-f", "--filename", "paths", multiple=True, required=True, help="File, folder (recursively), or - for stdin."
)
@click.option(
    "--against",
    help="The present state: `cluster`, or a folder or file of manifests.  [default: nothing, all is new]",
)
@click.option("-n", "--namespace", default="default", help="Of objects that name none.")
@click.option(
    "--metrics",
    "figures",
    help="Demand: a file (docs/plan.md), or `prometheus`.  [default: unknown]",
)
@click.option("--prometheus-url", envvar="TIERWISE_PROMETHEUS_URL", help="With --metrics prometheus.")
@click.option(
    "--prune/--no-prune",
    default=None,
    help="Objects that -f does not name are deleted.  [default: against manifests yes, against a cluster no]",
)
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table", help="Form.")
@click.option("--full", is_flag=True, help="Fold nothing.")
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the cluster.")
@click.option("--context", help="Context of the kubeconfig.")
@click.option("--operator-namespace", default="tierwise-system", help="Where the operator is installed.")
@click.option("--authentication/--no-authentication", default=None, help="Instead of what the operator is told.")
def plan(
    paths: tuple[str, ...],
    against: str | None,
    namespace: str,
    figures: str | None,
    prometheus_url: str | None,
    form: str,
    kubeconfig: Path | None,
    context: str | None,
    operator_namespace: str,
    *,
    prune: bool | None,
    full: bool,
    authentication: bool | None,
) -> None:
    """Check manifests as the API server would, and show what would change and what it would cost.

    Nothing is written anywhere. Without --against cluster and --metrics prometheus no network is used.
    """
    if (kubeconfig or context) and against != CLUSTER:
        raise click.UsageError("--kubeconfig and --context are for --against cluster")
    if figures == PROMETHEUS and not prometheus_url:
        raise click.UsageError("--metrics prometheus needs --prometheus-url")
    now = datetime.now(UTC)
    change = load.read(paths, namespace)
    notes = [f"passed over: {each}" for each in _shortened(change.passed_over)]
    if not change.objects and not change.problems and not against:
        change.problems.append(Problem(", ".join(paths), "", "", "", "holds no object of Tierwise"))
    present, environment, name, old = _present(against, change, namespace, kubeconfig, context, operator_namespace, now)
    # What is wrong already is no fault of a change that may put it right.
    notes += [f"in the present state, left out: {problem}" for problem in old]
    options = gateway_options(_settings(environment, authentication))
    prune = prune if prune is not None else against not in {None, CLUSTER}
    known = Metrics()
    if figures == PROMETHEUS:
        world = state.store_of(state.after(present, change, now, prune=prune)).snapshot(now)
        known = cluster.demand(str(prometheus_url), world, now)
    elif figures is not None:
        known = _figures(figures, namespace)
    else:
        notes.append("demand is unknown (no --metrics): costs that depend on it are left out")
    found = preview.make(change, present, known, now, against=name, options=options, prune=prune, notes=notes)
    if form == "table":
        click.echo(output.text(found, full=full, colour=_colour()), nl=False, color=_colour())
    else:
        click.echo(document.serialised(found, form), nl=False)
    sys.exit(EXIT_ERROR if found.problems else EXIT_CHANGED if found.changed else EXIT_SAME)


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _shortened(passed_over: list[str], most: int = 8) -> list[str]:
    return [*passed_over[:most], *([f"{len(passed_over) - most} more documents"] if len(passed_over) > most else [])]


def _present(
    against: str | None,
    change: Loaded,
    namespace: str,
    kubeconfig: Path | None,
    context: str | None,
    operator_namespace: str,
    now: datetime,
) -> tuple[State, Mapping[str, str], str, list[Problem]]:
    """The present state, the operator's environment, what it is in words, and what is not valid of it."""
    if against is None:
        return State(), {}, "nothing: all is new", []
    if against == CLUSTER:
        namespaces = {namespace, *(key[1] for key in change.objects)}
        found, environment, host = asyncio.run(cluster.present(kubeconfig, context, namespaces, operator_namespace))
        return found, environment, f"the cluster at {host}", []
    loaded = load.read([against], namespace, keep_status=True)
    return state.from_loaded(loaded, state.earlier(now)), {}, against, loaded.problems


def _figures(name: str, namespace: str) -> Metrics:
    path = Path(name)
    if not path.is_file():
        raise SourceError(f"{name}: there is no such file (write `prometheus`, or the name of a file)")
    try:
        found = documents(path.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: can not be read: {error}") from error
    if len(found) != 1:
        raise SourceError(f"{name}: holds {len(found)} documents: write one, as docs/plan.md shows")
    return metrics.parse(found[0], namespace)


def _settings(environment: Mapping[str, str], authentication: bool | None) -> Settings:  # noqa: FBT001 - private
    """The operator's settings that the gateways' configuration depends on."""
    told = environment.get("TIERWISE_AUTHENTICATION", "true").lower() == "true"
    return Settings(
        identity="preview",
        authentication=told if authentication is None else authentication,
        jwt_issuers=environment.get("TIERWISE_JWT_ISSUERS", "[]"),
        tracing_endpoint=environment.get("TIERWISE_TRACING_ENDPOINT", ""),
    )
