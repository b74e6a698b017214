"""The command."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from tierwise.costs import focus, output, source
from tierwise.costs.report import DIMENSIONS, Source, buckets, chosen, report, since

EXIT_DIFFERS = 3
FORMATS = ("table", "csv", "json", "yaml", "focus", "focus-json")


def _dimensions(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    unknown = [part for part in found if part not in DIMENSIONS]
    if unknown or not found:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: choose among {', '.join(DIMENSIONS)}")
    return found


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="Exit codes: 0 printed; 1 could not be read; 2 wrong usage; 3 printed, but lines and ledger differ.",
)
@click.option("-n", "--namespace", help="Only this namespace.  [default: all]")
@click.option(
    "--by", "dimensions", default="tier", callback=_dimensions, help="What to add up by, with commas between."
)
@click.option(
    "--since",
    "start",
    default="period",
    help="From when on: period, last-period, 36h, 7d, a date or a time (of the budget's time zone).",
)
@click.option("--budget", help="Of a namespace with several budgets, this one.  [default: of the longest period]")
@click.option("-o", "--output", "form", type=click.Choice(FORMATS), default="table", help="How to print.")
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Manifests in this file instead of a cluster's objects: kubectl get nbud,cm -o yaml.",
)
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the cluster.")
@click.option("--context", help="Context of the kubeconfig.")
def costs(
    namespace: str | None,
    dimensions: tuple[str, ...],
    start: str,
    budget: str | None,
    form: str,
    paths: tuple[Path, ...],
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Print what namespaces have spent, by tier, policy, class or consumer, out of the ledger."""
    if paths and (kubeconfig or context):
        raise click.UsageError("-f and --kubeconfig or --context exclude each other")
    manifests = source.from_files(paths) if paths else asyncio.run(source.from_cluster(kubeconfig, context, namespace))
    found, notes = source.sources(manifests, budget)
    found = [one for one in found if namespace in {None, one.namespace}]
    now = datetime.now(UTC)
    made = report(found, dimensions, start, now)
    for note in notes:
        click.echo(note, err=True)
    if form.startswith("focus"):
        _focus(found, start, now, form)
    elif form == "csv":
        records = output.records(made)
        columns = list(records[0]) if records else ["namespace", *dimensions, "cost"]
        click.echo(output.as_csv(records, columns), nl=False)
    else:
        text = {"table": output.table, "json": output.as_json, "yaml": output.as_yaml}[form](made)
        click.echo(text, nl=False)
    if form not in {"table", "json", "yaml"}:
        for one in made.checks:
            click.echo(output.check_line(one), err=True)
    if not all(one.agrees for one in made.checks):
        sys.exit(EXIT_DIFFERS)


def _focus(found: list[Source], start: str, now: datetime, form: str) -> None:
    rows = []
    for one in found:
        wanted = chosen(one, since(start, one.kept, now))
        if start == "last-period":
            wanted = [each for each in wanted if each.billing[0] < one.kept.account.start]
        rows += list(focus.rows(one, wanted))
    if form == "focus-json":
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(output.as_csv(rows, focus.COLUMNS), nl=False)
    unpriced = [
        f"{one.namespace}/{tier}"
        for one in found
        for each in buckets(one.kept)
        for (tier, _), line in each.lines.items()
        if line.unpriced
    ]
    if unpriced:
        names = ", ".join(sorted(set(unpriced)))
        click.echo(f"without a price, and so in no row: some of what {names} used", err=True)
