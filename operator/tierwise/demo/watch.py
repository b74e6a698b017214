"""What the API server shows, as it changes: the objects that `kubectl get --watch` prints."""

import asyncio
import codecs
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tierwise.demo.errors import StepFailedError

Document = dict[str, Any]
RESTART_SECONDS = 0.5
READ_BYTES = 1 << 16


class Documents:
    """Cuts a stream of JSON texts, one after the other, into objects."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder()
        self._text = ""

    def feed(self, text: str) -> list[Document]:
        """The objects that are complete now."""
        self._text += text
        found: list[Document] = []
        while True:
            self._text = self._text.lstrip()
            if not self._text:
                return found
            try:
                value, end = self._decoder.raw_decode(self._text)
            except ValueError:
                return found
            self._text = self._text[end:]
            found.append(value)


async def events(argv: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[tuple[str, Document]]:
    """(type, object) of `kubectl get ... --watch --output-watch-events -o json`, until it ends.

    Raises:
        StepFailedError: when it can not be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise StepFailedError(f"can not run {argv[0]}: {error}") from error
    documents = Documents()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        if process.stdout is None:
            raise StepFailedError(f"{argv[0]} has no output")
        while chunk := await process.stdout.read(READ_BYTES):
            for document in documents.feed(decoder.decode(chunk)):
                yield str(document.get("type", "")), document.get("object") or {}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()


async def follow(
    argv: Sequence[str], env: Mapping[str, str], handle: Callable[[str, Document], None], restarted: Callable[[], None]
) -> None:
    """Hand every event to `handle`, for ever; `restarted` is called before a watch that ended is begun again."""
    while True:
        async for kind, document in events(argv, env):
            handle(kind, document)
        await asyncio.sleep(RESTART_SECONDS)
        restarted()
