"""The operator by a wall clock of a test's choice, as a container of the development cluster.

    python shifted_operator.py FOLDER

FOLDER/clock is JSON. `epoch` (seconds) is where the test's whole world stands, and is read once. `step` is how far this
operator's own clock is off in it, and may be written again at any time. Prometheus goes by the machine's clock: a proxy
in this process shifts what it is asked and what it answers by the epoch.
"""

import asyncio
import dataclasses
import http.server
import json
import sys
import threading
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from tierwise import logs
from tierwise.runtime import assembly, cli
from tierwise.settings import Settings

TIMEOUT_SECONDS = 10.0


class Clock:
    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.epoch = float(json.loads(self._file.read_text())["epoch"])

    def __call__(self) -> datetime:
        step = float(json.loads(self._file.read_text())["step"])
        return datetime.fromtimestamp(time.time() + self.epoch + step, UTC)


def asked(path: str, epoch: float) -> str:
    """A question's path with its times as Prometheus knows them."""
    parts = urllib.parse.urlsplit(path)
    fields = urllib.parse.parse_qsl(parts.query)
    shifted = [(name, f"{float(v) - epoch:.3f}" if name in {"time", "start", "end"} else v) for name, v in fields]
    return parts._replace(query=urllib.parse.urlencode(shifted)).geturl()


def answered(text: bytes, epoch: float) -> bytes:
    """An answer with its times as the operator knows them."""
    found: dict[str, Any] = json.loads(text)
    for row in found.get("data", {}).get("result", ()):
        for sample in [*row.get("values", ()), *([row["value"]] if "value" in row else [])]:
            sample[0] += epoch
    return json.dumps(found).encode()


def proxy(upstream: str, epoch: float) -> str:
    """Serve until the process ends; the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert not int(self.headers.get("content-length") or 0), "the client puts questions into the path"
            try:
                response = requests.post(upstream + asked(self.path, epoch), timeout=TIMEOUT_SECONDS)
                status, text = response.status_code, response.content
                text = answered(text, epoch) if response.ok else text
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


async def run(settings: Settings, clock: Clock) -> int:
    operator = await assembly.operator(settings, wall=clock)
    return await operator.run()


def main() -> int:
    clock = Clock(Path(sys.argv[1]))
    options = dict(cli.run.make_context("tierwise", []).params)  # from the same variables as `tierwise run`
    logs.configure(options.pop("log_format"), options.pop("log_level"))
    settings = Settings(**options)
    shifted = dataclasses.replace(settings, prometheus_url=proxy(settings.prometheus_url, clock.epoch))
    return asyncio.run(run(shifted, clock))


if __name__ == "__main__":
    sys.exit(main())
