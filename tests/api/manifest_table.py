"""Good manifests, and bad ones made from them: one table for the models and for a real API server."""

import copy
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from tierwise.api.scalars import Duration

_HERE = Path(__file__).parent
EXAMPLES = _HERE.parents[1] / "examples"
CRDS = _HERE.parents[1] / "crds"


@dataclass(frozen=True)
class BadManifest:
    """A manifest that must be refused at `field`, with `says` (API server) and `model` (pydantic) in the refusal."""

    case: str
    manifest: dict[str, Any]
    field: str
    server_field: str
    says: str
    model: str
    server_only: bool


def good() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((_HERE / "good_manifests.yaml").read_text()))


def bad() -> list[BadManifest]:
    bases = {manifest["metadata"]["name"]: manifest for manifest in good()}
    return [
        BadManifest(
            case=row["case"],
            manifest=_changed(bases[row["base"]], row["set"]),
            field=row["field"],
            server_field=row.get("server_field", row["field"]),
            says=row["says"],
            model=row.get("model", row["says"]),
            server_only=row.get("server_only", False),
        )
        for row in yaml.safe_load((_HERE / "bad_manifests.yaml").read_text())
    ]


def filled(model: type[BaseModel]) -> Any:
    """An instance with every field set, one item in every list."""
    return model(**{name: _sample(field.annotation) for name, field in model.model_fields.items()})


SAMPLES: dict[object, object] = {
    str: "abc",
    int: 7,
    bool: True,
    Decimal: Decimal("-12.345678"),
    datetime: datetime(2026, 11, 25, 7, 30, tzinfo=UTC),
    Duration: Duration.parse("1.5s"),
}


def _sample(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _sample(get_args(annotation)[0])
    options = [option for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) is tuple:
        return (_sample(options[0]),)
    if options:
        return _sample(options[0])
    if issubclass(annotation, BaseModel):
        return filled(annotation)
    if issubclass(annotation, Enum):
        return list(annotation)[-1]
    return SAMPLES[annotation]


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    manifest = copy.deepcopy(base)
    for path, value in changes.items():
        *way, last = [int(s[1:-1]) if s.startswith("[") else s for s in re.findall(r"\[\d+\]|[^.\[\]]+", path)]
        target: Any = manifest
        for step in way:
            target = target[step] if isinstance(step, int) else target.setdefault(step, {})
        if value is None:
            del target[last]
        else:
            target[last] = value
    return manifest
