"""Demand by slots: one class's requests and tokens in each slot, and how many came in its busiest ten seconds.

Two CSV forms, plain or `.gz`: per request (`t_s,prompt_tokens,output_tokens`) and per minute
(`minute,requests,prompt_tokens,output_tokens,max_requests_in_10s`, the tokens as sums).
"""

import csv
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tierwise.errors import TierwiseError

BURST_SECONDS = 10.0
"""Length of the busiest part of a slot that is told apart."""

PER_MINUTE = ("minute", "requests", "prompt_tokens", "output_tokens")
PER_REQUEST = ("t_s", "prompt_tokens", "output_tokens")

Floats = NDArray[np.float64]


class SlotTraceError(TierwiseError):
    """A trace that can not be read, with the remedy."""


@dataclass(frozen=True, slots=True)
class SlotTrace:
    """One class's demand, slot by slot. All arrays have one entry per slot.

    Attributes:
        slot_seconds: length of a slot.
        requests: that arrive in the slot. prompt_tokens, output_tokens: their sums.
        peak_requests: of these, in the busiest ten seconds.
    """

    slot_seconds: float
    requests: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    peak_requests: Floats

    @property
    def slots(self) -> int:
        """How many there are."""
        return len(self.requests)

    def scaled(self, factor: float) -> "SlotTrace":
        """So many times the requests, each as long as before."""
        return replace(
            self,
            requests=self.requests * factor,
            prompt_tokens=self.prompt_tokens * factor,
            output_tokens=self.output_tokens * factor,
            peak_requests=self.peak_requests * factor,
        )

    def part(self, first: int, last: int) -> "SlotTrace":
        """Slots `first` to `last`, the latter excluded."""
        return replace(
            self,
            requests=self.requests[first:last],
            prompt_tokens=self.prompt_tokens[first:last],
            output_tokens=self.output_tokens[first:last],
            peak_requests=self.peak_requests[first:last],
        )


def read(path: Path, slot_seconds: float) -> SlotTrace:
    """Read a trace of either form into slots.

    Args:
        path: of the CSV file, plain or `.gz`.
        slot_seconds: a multiple of ten seconds; for a file per minute a multiple or an even part of a minute.

    Raises:
        SlotTraceError: it is no such file, or the slot does not fit it.
    """
    if slot_seconds < BURST_SECONDS or slot_seconds % BURST_SECONDS:
        raise SlotTraceError(f"a slot of {slot_seconds:g} s does not hold whole tens of seconds: use 10, 30 or 60")
    columns = _columns(path)
    if all(name in columns for name in PER_MINUTE):
        return _per_minute(path, columns, slot_seconds)
    if all(name in columns for name in PER_REQUEST):
        return _per_request(columns, slot_seconds)
    raise SlotTraceError(f"{path}: the header needs {','.join(PER_REQUEST)} or {','.join(PER_MINUTE)}")


def _columns(path: Path) -> Mapping[str, Floats]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SlotTraceError(f"{path}: {error}") from error
    rows = csv.reader(text.splitlines())
    header = next(rows, [])
    wanted = [(place, name) for place, name in enumerate(header) if name in {*PER_MINUTE, *PER_REQUEST, PEAK}]
    found: dict[str, list[float]] = {name: [] for _, name in wanted}
    for row in rows:
        for place, name in wanted:
            try:
                value = float(row[place])
            except (ValueError, IndexError) as error:
                raise SlotTraceError(f"{path}: line {rows.line_num}: {name} is no number") from error
            if not 0 <= value < math.inf:
                raise SlotTraceError(f"{path}: line {rows.line_num}: {name} is {value}; it must not be negative")
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


PEAK = "max_requests_in_10s"


def _per_minute(path: Path, columns: Mapping[str, Floats], slot_seconds: float) -> SlotTrace:
    requests, prompts, outputs = (columns[name] for name in PER_MINUTE[1:])
    tenth = BURST_SECONDS / 60
    peaks = np.maximum(columns[PEAK], requests * tenth) if PEAK in columns else requests * tenth
    peaks = np.minimum(peaks, requests)
    if slot_seconds == 60:
        return SlotTrace(60.0, requests, prompts, outputs, peaks)
    if slot_seconds > 60 and slot_seconds % 60 == 0:
        each = int(slot_seconds // 60)
        count = len(requests) // each
        one, two, three = (v[: count * each].reshape(count, each).sum(axis=1) for v in (requests, prompts, outputs))
        return SlotTrace(slot_seconds, one, two, three, peaks[: count * each].reshape(count, each).max(axis=1))
    if 60 % slot_seconds == 0:
        parts = int(60 // slot_seconds)
        one, two, three = (np.repeat(values / parts, parts) for values in (requests, prompts, outputs))
        return SlotTrace(slot_seconds, one, two, three, np.minimum(np.repeat(peaks, parts), one))
    raise SlotTraceError(f"{path}: is by the minute, and slots of {slot_seconds:g} s do not fit that")


def _per_request(columns: Mapping[str, Floats], slot_seconds: float) -> SlotTrace:
    times = columns["t_s"]
    # The last slot is rarely whole: it is left out, unless it is the only one.
    count = max(1, int(times.max() // slot_seconds)) if len(times) else 0
    inside = times < count * slot_seconds
    slot = (times[inside] // slot_seconds).astype(np.int64)
    tens = int(slot_seconds // BURST_SECONDS)
    ten = (times[inside] // BURST_SECONDS).astype(np.int64)
    peaks = np.bincount(ten, minlength=count * tens)[: count * tens].reshape(count, tens).max(axis=1)
    return SlotTrace(
        slot_seconds,
        np.bincount(slot, minlength=count).astype(np.float64),
        np.bincount(slot, columns["prompt_tokens"][inside], minlength=count).astype(np.float64),
        np.bincount(slot, columns["output_tokens"][inside], minlength=count).astype(np.float64),
        peaks.astype(np.float64),
    )
