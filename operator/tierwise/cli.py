"""The `tierwise` command: one place that knows all subcommands, and imports each only when it is asked for."""

import importlib
import sys
from pathlib import Path

import click

from tierwise import __version__
from tierwise.errors import TierwiseError

# Subcommand -> (module, attribute, one line for the overview). Imported lazily: the operator needs no demo, and the
# engine simulator starts in a fraction of a second.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "cluster": ("tierwise.devcluster.cli", "cluster", "A real control plane with a process node, on this machine."),
    "costs": ("tierwise.costs.cli", "costs", "Show what namespaces have spent, and who caused it."),
    "demo": ("tierwise.demo.cli", "demo", "Bring everything up, send load, show what it costs."),
    "engine": ("tierwise.engine.cli", "engine", "An OpenAI-compatible engine simulator with vLLM's metrics."),
    "envoy-config": (
        "tierwise.runtime.envoy_config",
        "envoy_config",
        "Print the gateways' Envoy resources as they are served, without secrets.",
    ),
    "explain": ("tierwise.preview.explain_cli", "explain", "Tell what was decided about a policy, and why."),
    "plan": ("tierwise.preview.cli", "plan", "Show what a change would do and cost, before it is applied."),
    "run": ("tierwise.runtime.cli", "run", "Run the operator."),
    "simulate": (
        "tierwise.economics.simulate_cli",
        "simulate",
        "Replay a trace under the operator's own planner: cost, attainment, quality.",
    ),
}


class LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, sorted."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing anything."""
        rows = [(name, COMMANDS[name][2]) for name in COMMANDS]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if command is not None:
                rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tierwise")
def cli() -> None:
    """Tierwise: the cheapest mix of model tiers that keeps its promises, on Kubernetes."""


@cli.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files here instead of printing them.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a file in --output is not current.")
def crds(output: Path | None, *, check: bool) -> None:
    """Print or write the CustomResourceDefinitions."""
    from tierwise.api import crds as definitions  # noqa: PLC0415 - pydantic takes 0.2 s that other commands need not pay

    files = definitions.render()
    if output is None:
        click.echo("---\n".join(text for _, text in sorted(files.items())), nl=False)
        return
    stale = [name for name, text in files.items() if not _same(output / name, text)]
    if check:
        for name in stale:
            click.echo(f"{output / name} is not current: run `tierwise crds --output {output}`", err=True)
        sys.exit(1 if stale else 0)
    output.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (output / name).write_text(files[name], encoding="utf-8")
        click.echo(f"wrote {output / name}")


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> None:
    """Entry point: errors of ours are one clear line, not a traceback."""
    try:
        cli.main(standalone_mode=True)
    except TierwiseError as error:
        click.echo(f"tierwise: {error}", err=True)
        sys.exit(1)
