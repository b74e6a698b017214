"""`tierwise explain`, and `kubectl tierwise explain`: what was decided about a policy, and why."""

import asyncio
from pathlib import Path

import click

from tierwise.adapters import cluster as adapter
from tierwise.preview import explain as words
from tierwise.preview import facts


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("policy")
@click.option("-n", "--namespace", help="Of the policy.  [default: the context's]")
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    help="Objects with their statuses from files or folders, or - for stdin, instead of a cluster's.",
)
@click.option("-o", "--output", "form", type=click.Choice(["text", "json", "yaml"]), default="text", help="Form.")
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the cluster.")
@click.option("--context", help="Context of the kubeconfig.")
def explain(
    policy: str,
    namespace: str | None,
    paths: tuple[str, ...],
    form: str,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Tell what was decided about POLICY and why: demand, weights, cost, what binds, what else was weighed."""
    if paths and (kubeconfig or context):
        raise click.UsageError("-f and --kubeconfig or --context exclude each other")
    name = policy.removeprefix("routingpolicy/").removeprefix("rpol/")
    if paths:
        found = facts.from_files(paths, name, namespace or adapter.DEFAULT_NAMESPACE)
    else:
        found = asyncio.run(facts.from_cluster(name, namespace, kubeconfig, context))
    click.echo(words.text(found) if form == "text" else words.serialised(found, form), nl=False)
