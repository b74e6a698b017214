"""`tierwise demo`."""

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from tierwise.demo import html, load, objects, report, results, run, simulate, stage, summary, timeline, upstream
from tierwise.demo import live as live_view
from tierwise.demo.stage import Stage
from tierwise.demo.summary import Outcome, Simulated
from tierwise.devcluster.cluster import Cluster
from tierwise.sim.traces import TraceRequest
from tierwise.simulate import page


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    minutes: float
    trace: Path | None
    seed: int
    keep: bool
    output: Path
    name: str
    kubeconfig: Path | None
    live: bool
    control: bool
    simulate: bool
    began: float


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--minutes", type=click.FloatRange(0.25, 60), default=5.0, help="How long requests are sent.")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with t_s, prompt_tokens, output_tokens (.gz too).  [default: built-in, seeded]",
)
@click.option("--seed", type=int, default=7, help="Of the built-in trace.")
@click.option("--keep", is_flag=True, help="Leave the cluster up, and print how to use it.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-results"),
    help="Folder for summary.json and the CSV files.",
)
@click.option("--name", default="demo", help="Name of the development cluster.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run on this cluster instead of a development cluster.",
)
@click.option("--live/--no-live", default=None, help="Live picture.  [default: on a terminal]")
@click.option("--strict", is_flag=True, help="Fail too when a comparison does not hold; a busy machine can cause that.")
@click.option("--control/--no-control", default=True, help="Send the trace to the all-large arm as well.")
@click.option("--simulate/--no-simulate", default=True, help="Compare with other rules in simulation, at the end.")
def demo(
    *,
    minutes: float,
    trace: Path | None,
    seed: int,
    keep: bool,
    output: Path,
    name: str,
    kubeconfig: Path | None,
    live: bool | None,
    strict: bool,
    control: bool,
    simulate: bool,
) -> None:
    """Bring everything up, send a trace of requests, show what it costs, and compare.

    Ends with exit code 0 when the run worked: every request answered, logs and clients agree, floors kept. Comparisons
    that did not hold are named in the summary; with --strict they count as well.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=live_view.WIDTH)
    options = Options(
        minutes=minutes,
        trace=trace,
        seed=seed,
        keep=keep,
        output=output,
        name=name,
        kubeconfig=kubeconfig,
        live=console.is_terminal if live is None else live,
        control=control,
        simulate=simulate,
        began=time.monotonic(),
    )
    try:
        outcome = _perform(options, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)
    sys.exit(0 if (outcome.held if strict else outcome.worked) else 1)


def _perform(options: Options, console: Console) -> Outcome:
    def say(text: str) -> None:
        console.print(f"{time.monotonic() - options.began:6.1f} s  {text}", highlight=False, soft_wrap=True)

    model = simulate.model_of(stage.documents(), stage.PROVIDER_PROFILE, options.seed)
    terms = model.terms
    trace = load.prepared(options.trace, options.seed, 60 * options.minutes, terms)
    options.output.mkdir(parents=True, exist_ok=True)
    source = options.trace or f"the built-in trace, seed {options.seed}"
    say(f"{len(trace)} requests in {options.minutes:g} min from {source}")
    cluster, owned = stage.open_cluster(options.name, options.kubeconfig, console)
    with _cleared(Stage(cluster, owned, terms), options) as made:
        target = simulate.hpa_target(model, trace, 60 * options.minutes) if options.control else None
        ready = stage.prepare(cluster, owned=owned, control=target, say=say)
        made.namespaces, made.gateway, made.timings = ready.namespaces, ready.gateway, ready.timings
        arms = [run.AUTO_ARM, *([run.LARGE_ARM] if options.control else [])]
        asyncio.run(run.first_answer(made, arms))
        made.timings["first answer since start"] = time.monotonic() - options.began
        say("the first request was answered through the gateway")
        seen = asyncio.run(run.perform(made, arms, trace, options.output, console, show=options.live))
        rows = _rehearsed(options, model, trace, seen.seconds, say)
        outcome = _conclude(options, made, trace, arms, seen, rows)
        report.show(outcome, terms.currency, console)
        lives = seen.recorder.book.lives.values()
        points = timeline.build(int(seen.seconds), arms, terms, seen.recorder.observed)
        for path in results.write(options.output, outcome, points, seen.recorder.served, lives):
            say(f"wrote {path}")
        (options.output / "picture.svg").write_text(live_view.svg(seen.busiest), encoding="utf-8")
        told = html.report(outcome, points, seen.recorder.served, seen.recorder.moves, terms)
        (options.output / "report.html").write_text(page.render(told), encoding="utf-8")
        say(f"wrote {options.output / 'report.html'}: the run as plots, for a browser")
    return outcome


@contextlib.contextmanager
def _cleared(made: Stage, options: Options) -> Iterator[Stage]:
    """Whatever happens, what was started ends, unless it shall stay."""
    try:
        yield made
    except BaseException:
        if not options.keep:
            stage.clear(made)
        raise
    if options.keep:
        _explain(made)
    else:
        stage.clear(made)


def _explain(made: Stage) -> None:
    model = f"{objects.AUTO_NAMESPACE}/{made.terms.model}"
    click.echo("The cluster stays up. To use it:")
    click.echo(f"  export KUBECONFIG={shlex.quote(str(made.cluster.kubeconfig.resolve()))}")
    click.echo(f"  kubectl -n {objects.AUTO_NAMESPACE} get modeltiers,routingpolicies,hpa,deploy")
    click.echo(
        f"  curl -s http://{made.gateway}/v1/chat/completions -H 'content-type: application/json' "
        f'-d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    if isinstance(made.cluster, Cluster):
        click.echo(f"  tierwise cluster down --name {made.cluster.name}    # to end it")


def _rehearsed(
    options: Options, model: simulate.Model, trace: list[TraceRequest], seconds: float, say: Callable[[str], None]
) -> tuple[Simulated, ...]:
    if not options.simulate:
        return ()
    say("comparing with other rules in simulation: same trace, tiers and prices")
    auto, _ = simulate.rehearse(model, trace, seconds)
    return (auto, *simulate.others(model, trace, seconds))


def _conclude(
    options: Options,
    made: Stage,
    trace: list[TraceRequest],
    arms: list[timeline.Arm],
    seen: run.Seen,
    rows: tuple[Simulated, ...],
) -> Outcome:
    observed = seen.recorder.observed
    outcomes = {arm.name: summary.arm_outcome(arm, made.terms, observed, seen.seconds) for arm in arms}
    logs = None  # of another cluster's Pods nobody keeps the files
    if isinstance(made.cluster, Cluster):
        wanted = [*(arm.namespace for arm in arms), objects.PROVIDER_NAMESPACE]
        logs = upstream.read(made.cluster.state.logs / "pods", seen.recorder.book.lives, wanted)
    auto, large = outcomes[objects.AUTO], outcomes.get(objects.ALL_LARGE)
    checks = summary.live_checks(auto, large, observed.served, logs) + summary.simulated_checks(rows, simulate.AUTO)
    facts: dict[str, object] = {
        "trace": str(options.trace.name) if options.trace is not None else f"built-in, seed {options.seed}",
        "requests in the trace": len(trace),
        "began": seen.began.isoformat(timespec="milliseconds"),
        "window in seconds": round(seen.seconds, 1),
        "processors": os.cpu_count(),
    }
    facts["answers after a second attempt"] = sum((record.attempts or 1) > 1 for record in observed.served)
    if seen.cpu is not None:
        facts["processors busy"] = f"{seen.cpu:.0%}"
    for arm, share in seen.client_cpu.items():
        facts[f"client of {arm} busy"] = f"{share:.0%} of one processor"
    return Outcome(outcomes, rows, checks, made.timings, facts)
