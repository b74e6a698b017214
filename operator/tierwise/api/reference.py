"""The tables of fields in docs/kinds, made from the definitions: what `kubectl explain` says, on one page."""

import re
from collections.abc import Iterator
from typing import Any

from tierwise.api.crds import definition
from tierwise.api.meta import ApiObject

_BEGIN = "<!-- fields: {part} (generated) -->"
_END = "<!-- end of fields -->"


def with_fields(page: str, model: type[ApiObject[Any, Any]]) -> str:
    """The page with its generated tables (of `spec`, of `status`) brought up to date; all else stays.

    Raises:
        ValueError: a marker is missing.
    """
    versions = definition(model)["spec"]["versions"]
    parts = versions[0]["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        begin = _BEGIN.format(part=part)
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(_END), re.DOTALL)
        table = f"{begin}\n{_table(parts[part], part)}\n{_END}"
        marked = pattern.findall(page)
        if len(marked) != 1:
            raise ValueError(f"the page of {model.KIND.kind} has {len(marked)} times the marker {begin}")
        page = page.replace(marked[0], table)
    return page


def _table(schema: dict[str, Any], part: str) -> str:
    with_default = part == "spec"
    head = ["field", "type", "default", "meaning"] if with_default else ["field", "type", "meaning"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for path, field, required in _fields(schema, ""):
        cells = [f"`{path}`", _type(field)]
        if with_default:
            cells.append("**required**" if required else _default(field))
        rows.append("| " + " | ".join([*cells, _escaped(field.get("description", ""))]) + " |")
    return "\n".join(rows)


def _fields(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, field, name in required
        if field.get("type") == "array":
            yield from _fields(field["items"], f"{path}[].")
        else:
            yield from _fields(field, f"{path}.")


def _type(field: dict[str, Any]) -> str:
    if "x-kubernetes-int-or-string" in field:
        return "quantity"
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    limits = [f"{field[key]}" if key in field else "" for key in ("minimum", "maximum")]
    return f"{field['type']} {limits[0]}..{limits[1]}" if any(limits) else str(field["type"])


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default is None or default == {}:
        return ""
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default)
    return f"`{default}`" if isinstance(default, int) else f'`"{default}"`'


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
