"""`tierwise simulate`: what manifests would cost and keep on a trace, before anybody applies them."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from tierwise import yaml_text
from tierwise.economics import figures, simulate_page, simulate_text, simulation
from tierwise.economics.simulation import Given, Options, Speed
from tierwise.preview import load
from tierwise.simulate import engines, page, setting
from tierwise.simulate.setting import Setting, SettingError

_HOURS = re.compile(r"^(?:(\d+(?:\.\d+)?)-)?(\d+(?:\.\d+)?)$")


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="Exit codes: 0 simulated; 1 manifests, traces or profiles can not be simulated; 2 wrong usage.",
)
@click.option(
    "-f", "--filename", "paths", multiple=True, required=True, help="Manifests: file, folder, or - for stdin."
)
@click.option(
    "--trace",
    "trace_options",
    multiple=True,
    required=True,
    metavar="[[POLICY/]CLASS=]FILE",
    help="Requests, per request or per minute (.gz too): one file per class, or one with a column `class`.",
)
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How fast engines are: YAML, JSON or CSV (docs/simulate.md).  [default: by the tier's env or model]",
)
@click.option(
    "--speed",
    type=click.Choice([str(each) for each in Speed]),
    default="auto",
    help="exact: iteration by iteration; fast: second by second; fluid: minute by minute; auto: fluid for files per "
    "minute, else fast.",
)
@click.option("--scale", "scales", multiple=True, metavar="[CLASS=]X", help="So many times the requests.")
@click.option("--hours", metavar="[FROM-]TO", help="Only these hours of the traces, such as 24 or 10-12.")
@click.option("--seed", type=int, default=0, help="Of weights' choices and of requests drawn from minutes.")
@click.option(
    "--output-factor",
    "factors",
    multiple=True,
    metavar="[CLASS:]TIER=X",
    help="A tier's answers are so many times as long as the trace's.",
)
@click.option("--p95-prompt", "prompts", multiple=True, metavar="CLASS=TOKENS", help="For files per minute.")
@click.option("--round", "round_seconds", type=click.FloatRange(1, 3600), help="Seconds between planning rounds.")
@click.option("--warm-up/--no-warm-up", default=True, help="Begin with a system that already runs.")
@click.option("--optimum", is_flag=True, help="Compare with the offline optimum, which knows the trace.")
@click.option("--agreement", is_flag=True, help="Print how far fluid and event level agree on this, instead.")
@click.option("-n", "--namespace", help="Which, where manifests are of several.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table", help="Form.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with plots here.")
def simulate(
    paths: tuple[str, ...],
    trace_options: tuple[str, ...],
    profile: Path | None,
    speed: str,
    scales: tuple[str, ...],
    hours: str | None,
    seed: int,
    factors: tuple[str, ...],
    prompts: tuple[str, ...],
    round_seconds: float | None,
    namespace: str | None,
    form: str,
    html: Path | None,
    *,
    warm_up: bool,
    optimum: bool,
    agreement: bool,
) -> None:
    """Simulate the operator's own planner on a trace of requests, with the tiers and policies of these manifests.

    Nothing is read from or written to a cluster. Every figure is simulated, and says by which model.
    """
    began = time.monotonic()
    manifests = load.read(paths, namespace or "default")
    if manifests.problems:
        for problem in load.in_order(manifests.problems):
            click.echo(str(problem), err=True)
        sys.exit(1)
    made = setting.make(manifests.objects.values(), engines.read(profile) if profile is not None else None, namespace)
    options = Options(
        speed=Speed(speed),
        scale=setting.several(made, scales, "--scale"),
        seed=seed,
        hours=_hours(hours),
        output_factor=_factors(made, factors),
        long_prompt=setting.several(made, prompts, "--p95-prompt"),
        round_seconds=round_seconds,
        warm_up=warm_up,
    )
    ready = simulation.prepare(made, given(made, trace_options), options)
    if agreement:
        for name, each in simulation.agreements(ready).items():
            simulate_text.show_agreement(name, each)
        return
    run = simulation.perform(ready)
    simulated = time.monotonic() - began
    found = figures.document(run, optimum=optimum)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page.render(simulate_page.report(run, found)), encoding="utf-8")
        click.echo(f"wrote {html}", err=True)
    if form == "json":
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif form == "yaml":
        click.echo(yaml_text.dump(found), nl=False)
    else:
        simulate_text.show(found)
    total = found["requests"]["total"]
    click.echo(f"{total:,} requests in {run.hours:.2f} simulated hours took {simulated:.1f} s", err=True)


def _hours(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    found = _HOURS.match(text)
    if found is None or float(found[1] or 0) >= float(found[2]):
        raise click.UsageError(f"--hours {text}: write the last hour, or the first and the last, such as 24 or 10-12")
    return float(found[1] or 0), float(found[2])


def _factors(made: Setting, pairs: Sequence[str]) -> dict[tuple[str, str], float]:
    known = [tier.name for tier in made.tiers]
    found: dict[tuple[str, str], float] = {}
    for pair in pairs:
        place, _, text = pair.rpartition("=")
        name, _, tier = place.rpartition(":")
        if tier not in known:
            raise SettingError(f"--output-factor {pair}: {tier!r} is no tier; there are {', '.join(known)}")
        try:
            value = float(text)
        except ValueError as error:
            raise SettingError(f"--output-factor {pair}: {text!r} is no number; write TIER=NUMBER") from error
        if value <= 0:
            raise SettingError(f"--output-factor {pair}: must be above 0")
        names = [setting.class_named(made, name)] if name else list(made.classes)
        found |= {(each, tier): value for each in names}
    return found


def given(made: Setting, pairs: Sequence[str]) -> Mapping[str, Given]:
    """Every class's trace.

    Raises:
        SettingError: a class has none or two, a file is not there, or a name is of no class.
    """
    found: dict[str, Given] = {}

    def put(name: str, each: Given, pair: str) -> None:
        if name in found:
            raise SettingError(f"--trace {pair}: class {name} has a trace already, {found[name].path}; give one")
        found[name] = each

    bare = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            bare.append(pair)
            continue
        chosen, path = setting.class_named(made, name), _file(text, pair)
        put(chosen, _only(simulation.read(path, classes=False)), pair)
    for place, pair in enumerate(bare):
        path = _file(pair, pair)
        if simulation.has_classes(path):
            for name, each in simulation.read(path, classes=True).items():
                put(setting.class_named(made, name), each, pair)
            continue
        names = [name for name in made.classes if name not in found]
        if len(bare) - place != len(names):
            raise SettingError(
                f"--trace {pair}: {len(bare) - place} files without a class for {len(names)} classes "
                f"({', '.join(names)}); write CLASS=FILE"
            )
        put(names[0], _only(simulation.read(path, classes=False)), pair)
    return found


def _only(read: Mapping[str, Given]) -> Given:
    return next(iter(read.values()))


def _file(text: str, pair: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise SettingError(f"--trace {pair}: there is no file {text}; name a CSV file, plain or .gz")
    return path
