"""The CustomResourceDefinitions, made from the models: `render()` gives each file's text."""

from typing import Any

from tierwise import yaml_text
from tierwise.api.base import ApiModel, StatusModel
from tierwise.api.consumer import Consumer
from tierwise.api.meta import GROUP, VERSION, ApiObject, PrinterColumn
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.schema import structural

KINDS: tuple[type[ApiObject[Any, Any]], ...] = (ModelTier, RoutingPolicy, NamespaceBudget, Consumer)
CATEGORY = "inference"
_HEADER = "# Generated from the models in tierwise.api by `tierwise crds`: change them, not this file.\n"


def render() -> dict[str, str]:
    """File name to YAML text of every definition, sorted; equal models give equal bytes."""
    files = {
        f"{GROUP}_{model.KIND.plural}.yaml": _HEADER + yaml_text.dump(definition(model), indented=True)
        for model in KINDS
    }
    return dict(sorted(files.items()))


def definition(model: type[ApiObject[Any, Any]]) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind, as a manifest."""
    kind = model.KIND
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "tierwise"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": _object_schema(model)},
                }
            ],
        },
    }


def _object_schema(model: type[ApiObject[Any, Any]]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "description": " ".join((model.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"Version of the API: {GROUP}/{VERSION}.", "type": "string"},
            "kind": {"description": f"Kind of the object: {model.KIND.kind}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(_part(model, "spec", ApiModel)),
            "status": structural(_part(model, "status", StatusModel), status=True),
        },
    }
    if model.RULES:
        schema["x-kubernetes-validations"] = [rule.schema() for rule in model.RULES]
    return schema


def _part(model: type[ApiObject[Any, Any]], name: str, base: type[ApiModel]) -> type[ApiModel]:
    part = model.model_fields[name].annotation
    if not isinstance(part, type) or not issubclass(part, base):
        raise TypeError(f"{model.__name__}.{name} is no {base.__name__}")
    return part


def _column(column: PrinterColumn) -> dict[str, Any]:
    entry = {
        "name": column.name,
        "type": column.type,
        "description": column.description,
        "jsonPath": column.json_path,
    }
    return entry | {"priority": column.priority} if column.priority else entry
