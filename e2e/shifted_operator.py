"""The operator by a wall clock of a test's choice, as a container of the development cluster.

    python shifted_operator.py FOLDER

FOLDER/clock is JSON, and may be written again at any time. `epochs` says where the test's whole world stands: pairs of
a moment of the machine's clock and what the world is ahead of it from then on (seconds), oldest first. `step` is how
far this operator's own clock is off in that world. Prometheus goes by the machine's clock: a proxy in this process
turns the times that it is asked for, and those that it answers with, into the world's.
"""

import asyncio
import dataclasses
import http.server
import json
import math
import sys
import threading
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from tierwise import logs
from tierwise.adapters.queries import UPTIME
from tierwise.runtime import assembly, cli
from tierwise.settings import Settings

TIMEOUT_SECONDS = 10.0


class World:
    """The test's world, as its file has it now."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"

    def _epochs(self) -> list[tuple[float, float]]:
        return [(float(since), float(ahead)) for since, ahead in json.loads(self._file.read_text())["epochs"]]

    def shown(self, at: float) -> float:
        """The world's time at a moment of the machine's clock, both in Unix seconds."""
        epochs = self._epochs()
        return at + next((ahead for since, ahead in reversed(epochs) if since <= at), epochs[0][1])

    def at(self, shown: float) -> float:
        """The other way round; what the world skipped was when it did."""
        until = math.inf
        epochs = self._epochs()
        for since, ahead in reversed(epochs):
            if shown - ahead >= since:
                return min(shown - ahead, until)
            until = since
        return min(shown - epochs[0][1], until)

    def wall(self) -> datetime:
        """The operator's own clock."""
        step = float(json.loads(self._file.read_text())["step"])
        return datetime.fromtimestamp(self.shown(time.time()) + step, UTC)


def asked(path: str, world: World) -> str:
    """A question's path with its times as Prometheus knows them."""
    parts = urllib.parse.urlsplit(path)
    fields = urllib.parse.parse_qsl(parts.query)
    times = {"time", "start", "end"}
    shifted = [(name, f"{world.at(float(value)):.3f}" if name in times else value) for name, value in fields]
    return parts._replace(query=urllib.parse.urlencode(shifted)).geturl()


def answered(text: bytes, world: World) -> bytes:
    """An answer with its times as the operator knows them, and with uptimes that go by the same clock."""
    found: dict[str, Any] = json.loads(text)
    for row in found.get("data", {}).get("result", ()):
        uptime = row["metric"].get("__name__") == UPTIME
        for sample in [*row.get("values", ()), *([row["value"]] if "value" in row else [])]:
            at = float(sample[0])
            sample[0] = world.shown(at)
            if uptime:
                sample[1] = str(sample[0] - world.shown(at - float(sample[1])))
    return json.dumps(found).encode()


def proxy(upstream: str, world: World) -> str:
    """Serve until the process ends; the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert not int(self.headers.get("content-length") or 0), "the client puts questions into the path"
            try:
                response = requests.post(upstream + asked(self.path, world), timeout=TIMEOUT_SECONDS)
                status, text = response.status_code, response.content
                text = answered(text, world) if response.ok else text
            except requests.RequestException as error:
                status, text = 502, str(error).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing: errors show in the operator's own log."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


async def run(settings: Settings, world: World) -> int:
    operator = await assembly.operator(settings, wall=world.wall)
    return await operator.run()


def main() -> int:
    world = World(Path(sys.argv[1]))
    options = dict(cli.run.make_context("tierwise", []).params)  # from the same variables as `tierwise run`
    logs.configure(options.pop("log_format"), options.pop("log_level"))
    settings = Settings(**options)
    shifted = dataclasses.replace(settings, prometheus_url=proxy(settings.prometheus_url, world))
    return asyncio.run(run(shifted, world))


if __name__ == "__main__":
    sys.exit(main())
