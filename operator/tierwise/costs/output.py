"""A report as a table, CSV, JSON or YAML. Pure."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from tierwise import yaml_text
from tierwise.core.book import Line
from tierwise.costs.report import Check, Report, Row, cents

_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens")


def table(report: Report) -> str:
    """For people: what was asked for, and the line that checks it."""
    names = [*report.dimensions, "requests", "input", "cached", "output", "replica hours", "measured", "estimated"]
    head = ["namespace", *names, "cost", ""]
    body = [_cells(row) for row in report.rows]
    sums = _sums(report.rows)
    left = 1 + len(report.dimensions)
    for (namespace, currency), (measured, estimated) in sums.items():
        blanks = [""] * (len(head) - left - 4)
        total = [namespace, "total", *[""] * (left - 2), *blanks]
        body.append([*total, str(measured), str(estimated), str(measured + estimated), currency])
    widths = [max(len(line[n]) for line in [head, *body]) for n in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if n < left or n == len(head) - 1 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [[name.upper() for name in head], *body]
    ]
    since, until = (moment.strftime("%Y-%m-%d %H:%M:%SZ") for moment in (report.since, report.until))
    return "\n".join([*lines, "", f"from {since} until {until}", *(check_line(one) for one in report.checks), ""])


def _cells(row: Row) -> list[str]:
    line = row.line
    return [
        row.namespace,
        *row.group,
        _whole(line.requests),
        *(_whole(getattr(line, name)) for name in _TOKENS),
        _hours(line),
        "-" if row.measured is None else str(row.measured),
        "-" if row.estimated is None else str(row.estimated),
        "unknown" if row.cost is None else str(row.cost),
        row.currency + (" + unknown" if line.unpriced and row.cost is not None else ""),
    ]


def check_line(one: Check) -> str:
    """Whether detail and sums agree, in words and figures."""
    said = "" if one.status is None else f" = {one.status} in its status"
    verdict = "ok" if one.agrees else "DIFFERS"
    return (
        f"check {one.namespace}/{one.budget}, whole period: {cents(one.lines)} in lines = {cents(one.ledger)} in the "
        f"ledger{said} {one.currency}: {verdict}"
    )


def _sums(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    found: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    for row in rows:
        measured, estimated = found.get((row.namespace, row.currency), (Decimal("0.00"), Decimal("0.00")))
        key = (row.namespace, row.currency)
        found[key] = (measured + (row.measured or Decimal(0)), estimated + (row.estimated or Decimal(0)))
    return found


def _whole(value: Decimal) -> str:
    return str(value.quantize(Decimal(1), ROUND_HALF_EVEN)) if value else "-"


def _hours(line: Line) -> str:
    seconds = line.replica_seconds + line.estimated_replica_seconds
    return str((seconds / 3600).quantize(Decimal("0.001"))) if seconds else "-"


def records(report: Report) -> list[dict[str, Any]]:
    """Rows as records; what is unknown is null, and money is text, as everywhere."""
    return [
        {
            "namespace": row.namespace,
            **dict(zip(report.dimensions, row.group, strict=True)),
            "currency": row.currency,
            "requests": int(row.line.requests),
            "inputTokens": int(row.line.input_tokens),
            "cachedInputTokens": int(row.line.cached_input_tokens),
            "outputTokens": int(row.line.output_tokens),
            "replicaSeconds": str(row.line.replica_seconds + row.line.estimated_replica_seconds),
            "measured": _text(row.measured),
            "estimated": _text(row.estimated),
            "cost": _text(row.cost),
            "provenance": row.provenance,
        }
        for row in report.rows
    ]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def document(report: Report) -> dict[str, Any]:
    """The whole report."""
    return {
        "since": report.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "until": report.until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rows": records(report),
        "checks": [
            {
                "namespace": one.namespace,
                "budget": one.budget,
                "currency": one.currency,
                "lines": str(cents(one.lines)),
                "ledger": str(cents(one.ledger)),
                "status": _text(one.status),
                "agrees": one.agrees,
            }
            for one in report.checks
        ],
    }


def as_json(report: Report) -> str:
    """The whole report as JSON."""
    return json.dumps(document(report), indent=2) + "\n"


def as_yaml(report: Report) -> str:
    """The whole report as YAML."""
    return yaml_text.dump(document(report))


def as_csv(found: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Records as CSV; null is empty. A cell that a spreadsheet would run is quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for record in found:
        writer.writerow({name: _cell(value) for name, value in record.items()})
    return out.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "@")) else value
