"""`tierwise engine` and `python -m tierwise.engine`: run the simulator until it is told to stop."""

import asyncio
import logging
import os
import signal
import sys

import click

from tierwise.engine.app import running
from tierwise.engine.options import Options, parse
from tierwise.errors import TierwiseError

logger = logging.getLogger("tierwise.engine")

_HELP = """An OpenAI-compatible engine SIMULATOR with vLLM's metrics: no model runs, times follow a replica model.

ARGUMENTS are those of a real engine, so that its manifest starts this: `MODEL`, `serve MODEL` or `--model MODEL`, then
--served-model-name, --host, --port, --max-model-len, --max-num-seqs, --max-num-batched-tokens,
--tensor-parallel-size, --api-key and --shutdown-timeout as vLLM has them; --model-path and --context-length as SGLang;
others are ignored.

\b
As an external provider: --provider --api-key KEY [--base-path /v1] [--rate-limit-rpm N]
                         [--tls-cert FILE --tls-key FILE] [--admin-port N]

Simulator settings come from the environment: TIERWISE_SIM_PROFILE, TIERWISE_SIM_STARTUP_SECONDS, TIERWISE_SIM_SEED,
TIERWISE_SIM_TOKENS_PER_CHUNK, TIERWISE_SIM_WAKE_MS, TIERWISE_SIM_FAULTS, TIERWISE_SIM_REQUEST_LOG,
TIERWISE_SIM_ADMIN_PORT, TIERWISE_SIM_DRAIN_ACCEPT_SECONDS. See docs/simulator.md.
"""


@click.command(
    help=_HELP,
    short_help="An OpenAI-compatible engine simulator with vLLM's metrics.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def engine(arguments: tuple[str, ...]) -> None:
    """Run the simulator."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(parse(arguments, os.environ)))


async def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if options.ignored:
        logger.info("ignored, since this is a simulator: %s", ", ".join(options.ignored))
    async with running(options) as (server, port, admin):
        logger.info(
            "SIMULATOR of %s listens on port %d%s: profile %s, served as %s, ready in %g s. No model runs here.",
            "a provider" if options.is_provider else "an engine",
            port,
            "" if admin is None else f" (admin {admin})",
            options.profile.name,
            ", ".join(options.served_names),
            options.startup_seconds,
        )
        await stop.wait()
        server.drain()
        try:
            async with asyncio.timeout(options.drain_limit_seconds):
                await server.idle.wait()
        except TimeoutError:
            logger.warning("gave up on %d requests after %g s", server.active, options.drain_limit_seconds)
    logger.info("stopped; requests by outcome: %s", server.log.counts)


def main() -> None:
    """Entry point of the module: errors of ours are one line."""
    try:
        engine.main(prog_name="python -m tierwise.engine", standalone_mode=True)
    except TierwiseError as error:
        click.echo(f"tierwise engine: {error}", err=True)
        sys.exit(1)
