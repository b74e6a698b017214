"""Bounded strings and lists that several kinds use, each with the remedy when it is wrong."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError


def text(pattern: str, remedy: str, *, max_length: int) -> tuple[Any, ...]:
    """Metadata of a string type that follows a regular expression (RE2 and Python both read it)."""
    compiled = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def check(value: str) -> str:
        if len(value) > max_length:
            raise PydanticCustomError("text", f"may be at most {max_length} characters long")
        if not compiled.fullmatch(value):
            raise PydanticCustomError("text", remedy)
        return value

    escaped = pattern.replace("\\", "\\\\")
    schema = {
        "type": "string",
        "maxLength": max_length,
        "x-kubernetes-validations": [{"rule": f"self.matches('{escaped}')", "message": remedy}],
    }
    return (AfterValidator(check), WithJsonSchema(schema))


def unique(remedy: str, key: Callable[[Any], object] = lambda item: item) -> AfterValidator:
    """Rejects a second item with the same key, as the API server does for list types `set` and `map`."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({key(item) for item in items}) != len(items):
            raise PydanticCustomError("unique", remedy)
        return items

    return AfterValidator(check)


def list_map(key: str) -> dict[str, Any]:
    """Schema of a list whose items are told apart by one field, so that several writers may own items."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


SET = {"x-kubernetes-list-type": "set"}
ATOMIC = {"x-kubernetes-list-type": "atomic"}

_LABEL = text(
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    'write a name of lower-case letters, digits and "-", such as "routine" (at most 63 characters)',
    max_length=63,
)
_OBJECT_NAME = text(
    "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
    'write the name of an object in this namespace: lower-case letters, digits, "-" and "."',
    max_length=253,
)
# A tier's name becomes the name of a Service and a label's value, with room for a suffix.
TIER_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
TIER_NAME_LENGTH = 52
_TIER_NAME = text(
    TIER_NAME,
    'write the name of a ModelTier in this namespace: a letter, then lower-case letters, digits and "-"',
    max_length=TIER_NAME_LENGTH,
)
_IMAGE = text(
    "^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$",
    'write a container image with tag or digest, such as "vllm/vllm-openai:v0.24.0"',
    max_length=512,
)
_MODEL = text(
    "^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$",
    'write a model name of letters, digits, ".", "_", ":" and "-", such as "assistant" '
    '(no "/": it separates namespace and model in requests)',
    max_length=128,
)
_UPSTREAM_MODEL = text(
    "^[A-Za-z0-9/._@~][A-Za-z0-9/._@~:+=,#-]*$",
    "write the model's name as the engine or provider expects it: letters, digits and any of / . _ @ ~ : + = , # -, "
    "without spaces or quotes",
    max_length=256,
)
_HOSTNAME = text(
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    'write a lower-case DNS name without scheme, port or wildcard, such as "legal.llm.example"',
    max_length=253,
)
_HEADER_NAME = text(
    "^[a-z0-9!#$%&*+.^_|~-]+$",
    'write a header name in lower case without colon, such as "x-session-id"',
    max_length=128,
)
_HEADER_VALUE = text(
    "^[!-~]([ -~]*[!-~])?$",
    "write a header value of printable ASCII characters, without line breaks and without spaces at its ends",
    max_length=512,
)
# Envoy reads %...% in the values of headers that it adds as a command: one could ask for another tier's secrets.
_ADDED_HEADER_VALUE = text(
    "^[!-$&-~]([ -$&-~]*[!-$&-~])?$",
    "write a header value of printable ASCII characters, without line breaks, percent signs and spaces at its ends",
    max_length=512,
)
_CREDENTIAL_PREFIX = text(
    "^[ -$&-~]*$",
    'write what stands before the credential, such as "Bearer " with its space, or "" for nothing',
    max_length=32,
)
_CURRENCY = text("^[A-Z]{3}$", 'write an ISO 4217 currency code of three capitals, such as "USD"', max_length=3)
_SECRET_KEY = text("^[-._a-zA-Z0-9]+$", 'write a key of the Secret\'s data, such as "token"', max_length=253)
_METRIC = text(
    "^[a-zA-Z_:][a-zA-Z0-9_:]*$",
    'write the name of a Prometheus metric, such as "vllm:num_requests_running"',
    max_length=128,
)
_ISSUER = text(
    "^[!$-~]+$",
    "write the issuer exactly as its tokens have it in iss, such as https://login.example",
    max_length=256,
)
_SUBJECT = text(
    "^[A-Za-z0-9._@:|/-]+$",
    "write the claim's value: letters, digits and any of . _ @ : | / -, at most 128 characters",
    max_length=128,
)
# One expression and no URL library, so that CEL and Python say the same. No user, query, fragment or percent-encoding.
_LABELS = "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_BASE_URL = text(
    f'^https?://{_LABELS}([.]{_LABELS})*(:{_PORT})?(/[!"$&->@-~]*)?$',
    'url must be an absolute URL without user, query or fragment, such as "https://api.provider.example/v1"',
    max_length=1024,
)
_URL_PATH = text("^/[!-~]*$", 'write an absolute path, such as "/health"', max_length=256)

Issuer = Annotated[str, *_ISSUER]
Subject = Annotated[str, *_SUBJECT]
Label = Annotated[str, *_LABEL]
TierName = Annotated[str, *_TIER_NAME]
Image = Annotated[str, *_IMAGE]
ObjectName = Annotated[str, *_OBJECT_NAME]
ModelName = Annotated[str, *_MODEL]
UpstreamModel = Annotated[str, *_UPSTREAM_MODEL]
Hostname = Annotated[str, *_HOSTNAME]
BaseUrl = Annotated[str, *_BASE_URL]
HeaderName = Annotated[str, *_HEADER_NAME]
HeaderValue = Annotated[str, *_HEADER_VALUE]
AddedHeaderValue = Annotated[str, *_ADDED_HEADER_VALUE]
CredentialPrefix = Annotated[str, *_CREDENTIAL_PREFIX]
Currency = Annotated[str, *_CURRENCY]
SecretKey = Annotated[str, *_SECRET_KEY]
MetricName = Annotated[str, *_METRIC]
UrlPath = Annotated[str, *_URL_PATH]
