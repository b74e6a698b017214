"""Logs by structlog: JSON for machines, coloured console for people; other libraries' records go the same way."""

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["json", "console"]

# kopf writes one INFO line per watch event and one ERROR per kind and attempt while the API server is away (we say so
# once), and warns that signals are ours; the others repeat what we report.
QUIET: dict[str, int] = {
    "kopf": logging.WARNING,
    "kopf._cogs.clients": logging.CRITICAL,
    "kubernetes.aio.leaderelection": logging.CRITICAL,
    "kopf.objects": logging.WARNING,
    "kopf._core.reactor.running": logging.ERROR,
    "aiohttp.access": logging.WARNING,
    "kubernetes": logging.WARNING,
    "urllib3": logging.WARNING,
    "grpc": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure(log_format: LogFormat, level: str) -> None:
    """Set up logging for the whole process. Safe to call again: it replaces what was set up.

    Args:
        log_format: `json` (one object a line) or `console`.
        level: standard name, such as `INFO`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        # kopf attaches the object that a record is about.
        structlog.stdlib.ExtraAdder(allow=["k8s_ref"]),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    tail: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if log_format == "json":
        tail += [
            structlog.processors.EventRenamer("message"),
            # The default shows local variables, which may hold a Secret's values.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(sort_keys=True, default=str),
        ]
    else:
        tail.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=tail))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in QUIET.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))
