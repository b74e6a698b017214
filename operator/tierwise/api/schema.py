"""From a pydantic model to the structural schema of a CustomResourceDefinition.

The API server takes a strict subset of OpenAPI v3: no references, no nullable unions, no `title`, and its own
`x-kubernetes-*` words for what plain schemas can not say. What this module does not know how to translate is an
error here, not a refusal there.
"""

from typing import Any

from pydantic import BaseModel

from tierwise.errors import TierwiseError

Schema = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_DROPPED = ("title", "examples", "discriminator", "propertyNames", "$defs")


class NotStructural(TierwiseError):  # noqa: N818 - says what the schema is
    """A model uses something that a structural schema can not express."""


def structural(model: type[BaseModel], *, status: bool = False) -> Schema:
    """The structural schema of a model.

    Args: model: a spec or a status. rules: keep the CEL rules; a status has none, only the operator writes it.

    Raises: NotStructural: the model uses a tuple with positions, a union, or another word that the API server does
    not take.
    """
    plain = model.model_json_schema(by_alias=True, mode="validation")
    return _Translation(plain.get("$defs", {}), status=status).translate(plain, model.__name__)


class _Translation:
    """Carries the definitions that references point to."""

    def __init__(self, definitions: dict[str, Schema], *, status: bool, in_list: bool = False) -> None:
        self.definitions = definitions
        self.status = status
        self.in_list = in_list

    def translate(self, given: Schema, path: str) -> Schema:
        schema = self._resolved(given, path)
        result: Schema = {key: schema.pop(key) for key in _KEPT if key in schema}
        if "description" in result:
            result["description"] = " ".join(result["description"].split())
        if schema.get("x-kubernetes-int-or-string"):
            result["anyOf"] = schema.pop("anyOf")
            del result["type"]
        if result.get("type") == "integer":
            result["format"] = "int32" if result.get("maximum", 2**31) < 2**31 else "int64"
        if "const" in schema:
            result["enum"] = [schema.pop("const")]
        if "items" in schema:
            inner = _Translation(self.definitions, status=self.status, in_list=True)
            result["items"] = inner.translate(schema.pop("items"), f"{path}[]")
        if "properties" in schema:
            result["properties"] = {
                name: self.translate(part, f"{path}.{name}") for name, part in schema.pop("properties").items()
            }
        values = schema.pop("additionalProperties", None)
        if isinstance(values, dict) and values and "x-kubernetes-preserve-unknown-fields" not in schema:
            result["additionalProperties"] = self.translate(values, f"{path}.*")
        self._extensions(schema, result)
        unknown = sorted(set(schema) - set(_DROPPED))
        if unknown:
            raise NotStructural(f"{path}: can not be expressed in a structural schema: {', '.join(unknown)}")
        _plain_default(result)
        if self.status:
            result.pop("default", None)
        elif self.in_list:
            _default_in_words(result)
        return result

    def _resolved(self, given: Schema, path: str) -> Schema:
        schema = dict(given)
        if "x-kubernetes-int-or-string" in schema:
            return {"type": ""} | schema
        if "anyOf" in schema:
            options = [option for option in schema.pop("anyOf") if option.get("type") != "null"]
            if len(options) != 1:
                raise NotStructural(f"{path}: is a union of {len(options)} types")
            # A field's own words (description, limits) win over those of its type.
            schema = options[0] | schema
            if schema.get("default", ...) is None:
                del schema["default"]
            return self._resolved(schema, path)
        if "$ref" in schema:
            name = schema.pop("$ref").rpartition("/")[2]
            return self._resolved(self.definitions[name] | schema, path)
        if "prefixItems" in schema:
            raise NotStructural(f"{path}: is a tuple with positions")
        return schema

    def _extensions(self, schema: Schema, result: Schema) -> None:
        for key in [key for key in schema if key.startswith("x-kubernetes-")]:
            value = schema.pop(key)
            if key != "x-kubernetes-validations" or not self.status:
                result[key] = value


def _default_in_words(schema: Schema) -> None:
    """Tell a default instead of filling it in.

    A field that the API server fills in inside a list makes the stored list differ from the written one: client-side
    apply would patch it each time, and Argo CD would call it out of sync for ever.
    """
    default = schema.pop("default", None)
    if default is not None and not isinstance(default, dict):
        shown = ", ".join(default) if isinstance(default, list) else default
        schema["description"] = f"{schema.get('description', '')} Default: {shown}.".strip()


def _plain_default(schema: Schema) -> None:
    """Leave out defaults that mean absence, and those that the defaults of the parts make up."""
    default = schema.get("default")
    if default in ([], None) or (default == {} and "properties" not in schema):
        schema.pop("default", None)
    elif isinstance(default, dict) and default == _parts_default(schema):
        schema["default"] = {}


def _parts_default(schema: Schema) -> Schema:
    whole: Schema = {}
    for name, part in schema.get("properties", {}).items():
        if "default" in part:
            whole[name] = (
                part["default"] or _parts_default(part) if isinstance(part["default"], dict) else part["default"]
            )
    return {name: value for name, value in whole.items() if value != {}}
