"""Envoy's routes in one line each: who is asked for, on which condition, and which tiers answer in which order."""

from collections.abc import Iterator, Mapping
from typing import Any

SENSITIVITY_HEADER = "x-tierwise-sensitivity"
_SIZE = "x-tierwise-bytes"


def table(resources: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """All routes of a namespace's RouteConfigurations, in the order in which they are tried.

    Args:
        resources: type URL -> name -> resource, as JSON.
    """
    lines: list[str] = []
    for type_url, found in sorted(resources.items()):
        if not type_url.endswith(".RouteConfiguration"):
            continue
        for resource in found.values():
            for models, route in _routes(resource, ""):
                line = _line(models, route)
                if line is not None:
                    lines.append(line)
    return lines


def _routes(node: Any, model: str) -> Iterator[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401 - any JSON value
    if isinstance(node, list):
        for item in node:
            yield from _routes(item, model)
        return
    if not isinstance(node, Mapping):
        return
    if "match" in node and ("route" in node or "direct_response" in node):
        yield model, node
        return
    for key, value in node.items():
        if key == "map" and isinstance(value, Mapping):
            for name, inner in value.items():
                yield from _routes(inner, name)
        else:
            yield from _routes(value, model)


def _line(model: str, route: Mapping[str, Any]) -> str | None:
    about = ((route.get("metadata") or {}).get("filter_metadata") or {}).get("tierwise")
    if about is None:
        return None  # the list of models, and what answers to paths that do not exist
    named = "/".join(part for part in (str(about.get("policy", "")), str(about.get("class", ""))) if part)
    level = str(route.get("name", "")).rpartition("/")[2]
    conditions = [*_conditions(route.get("match") or {})]
    left = f"{model}: {named}" + (f" [{level}]" if level else "")
    when = f" if {' and '.join(conditions)}" if conditions else ""
    answer = route.get("direct_response")
    if answer is not None:
        return f"{left}{when} -> answers {answer.get('status')}"
    return f"{left}{when} -> {_target(route.get('route') or {})}"


def _target(action: Mapping[str, Any]) -> str:
    plugin = ((action.get("inline_cluster_specifier_plugin") or {}).get("extension") or {}).get("typed_config") or {}
    groups = plugin.get("priority_groups")
    if groups:
        return ", then ".join(_weights(group.get("clusters") or ()) for group in groups)
    if "weighted_clusters" in action:
        return _weights(action["weighted_clusters"].get("clusters") or ())
    return str(action.get("cluster", "elsewhere")).rpartition("/")[2]


def _weights(clusters: Any) -> str:  # noqa: ANN401 - JSON
    shown = []
    for each in clusters:
        name = str(each.get("cluster_name") or each.get("name") or "").rpartition("/")[2]
        weight = each.get("weight")
        shown.append(f"{name} {weight}%" if weight is not None else name)
    return " + ".join(shown)


def _conditions(match: Mapping[str, Any]) -> Iterator[str]:
    for header in match.get("headers") or ():
        name = str(header.get("name", ""))
        if name == SENSITIVITY_HEADER:
            continue  # the route's name says of which sensitivity it is
        if "range_match" in header:
            bounds = header["range_match"]
            low, high = int(bounds.get("start", 0)), int(bounds.get("end", 0))
            shown = "body" if name == _SIZE else name
            unit = " bytes" if name == _SIZE else ""
            if low > 0:
                yield f"{shown} >= {low}{unit}"
            if high < 2**62:
                yield f"{shown} < {high}{unit}"
        elif "present_match" in header:
            if not header.get("invert_match"):
                yield f"{name} is sent"
            else:
                yield f"{name} is not sent"
        elif "string_match" in header:
            how, value = next(iter(header["string_match"].items()), ("", ""))
            text = value.get("regex", "") if isinstance(value, Mapping) else value
            text = str(text).removeprefix("(?i)")
            verb = {"exact": "is", "safe_regex": "matches", "prefix": "starts with"}.get(how, how)
            yield f"{name} {'not ' if header.get('invert_match') else ''}{verb} {text}"
