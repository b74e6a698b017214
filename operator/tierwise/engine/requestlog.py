"""What an upstream received, one JSON object per request: tests count from it, never from the gateway's own word.

Values of headers are left out except harmless ones; a credential shows only as the start of its SHA-256, enough to tell
which one came, or that one leaked.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

SHOWN_HEADERS = frozenset({"host", "user-agent", "content-type", "x-request-id", "traceparent", "content-length"})
SHOWN_PREFIXES = ("x-tierwise-", "x-envoy-")
DIGEST_CHARACTERS = 12


def credential_digest(value: str) -> str:
    """First characters of the SHA-256 of a credential without its `Bearer `."""
    secret = value[7:] if value[:7].lower() == "bearer " else value
    return hashlib.sha256(secret.encode()).hexdigest()[:DIGEST_CHARACTERS]


def describe_headers(headers: Mapping[str, str]) -> dict[str, object]:
    """Names of all headers, values of harmless ones, digests of credentials."""
    shown: dict[str, str] = {}
    digests: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in {"authorization", "api-key", "x-api-key", "proxy-authorization"}:
            digests[lower] = credential_digest(value)
        elif lower in SHOWN_HEADERS or lower.startswith(SHOWN_PREFIXES):
            shown[lower] = value
    return {
        "header_names": sorted(name.lower() for name in headers),
        "headers": shown,
        "credential_sha256": digests,
    }


class RequestLog:
    """Writes one line per request. Also counts them, for `/stats`."""

    def __init__(self, target: str, server: str) -> None:
        self._server = server
        self._own = target not in {"-", "off"}
        self._stream: TextIO | None = None
        if target == "-":
            self._stream = sys.stdout
        elif target != "off":
            self._stream = Path(target).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in `close`
        self.counts: dict[str, int] = {}

    def write(self, outcome: str, **values: object) -> None:
        """Record one request that ended as `outcome`: finished, aborted, rejected or failed."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if self._stream is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": "request",
            "server": self._server,
            "process": os.getpid(),
            "simulated": True,
            "outcome": outcome,
            **values,
        }
        self._stream.write(json.dumps(line, separators=(",", ":")) + "\n")
        if not self._own:
            self._stream.flush()

    def close(self) -> None:
        """Close the file, if it is ours."""
        if self._own and self._stream is not None:
            self._stream.close()
            self._stream = None
