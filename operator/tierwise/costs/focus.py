"""Lines as rows of the FinOps Open Cost and Usage Specification (FOCUS 1.2). Pure.

One row is what one origin used of one SKU of one tier in one hour or day. All mandatory columns are there, the
conditional ones where this data has what they are about; none is null that may not be.
https://focus.finops.org/focus-specification/v1-2/
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal

from tierwise.core.book import IDLE, UNTOLD, Line
from tierwise.core.signals import Origin
from tierwise.costs.report import PENDING, Bucket, Source

VERSION = "1.2"
MILLION = Decimal(1_000_000)
HOUR = Decimal(3600)

COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    "x_Provenance",
)
"""In the order in which they are printed: the specification's, by name."""

REQUIRED = frozenset(COLUMNS) - {"ChargeClass", "ContractedUnitPrice", "ListUnitPrice"}
"""Those that are never null here. ChargeClass is null but for corrections; unit prices where a row mixes several."""


def rows(source: Source, found: Iterable[Bucket]) -> Iterator[dict[str, str | None]]:
    """Rows of one budget's buckets; what has no price is no row, for its cost may not be null and is not zero."""
    for bucket in found:
        for (tier, origin), line in sorted(bucket.lines.items()):
            for meter, quantity, unit, cost, provenance in _charges(line):
                if cost or (quantity and not line.unpriced):
                    yield _row(source, bucket, tier, origin, (meter, quantity, unit, cost, provenance))


def _charges(line: Line) -> Iterator[tuple[str, Decimal, str, Decimal, str]]:
    """SKU meter, quantity, unit, cost, provenance. In-cluster tokens are not charged: their replicas are."""
    tokens = [
        ("Input Tokens", line.input_tokens, line.input_cost),
        ("Cached Input Tokens", line.cached_input_tokens, line.cached_input_cost),
        ("Output Tokens", line.output_tokens, line.output_cost),
    ]
    for meter, count, cost in tokens:
        if cost:
            yield meter, count / MILLION, "1000000 Tokens", cost, "measured"
    if line.replica_cost:
        yield "Replica Hours", line.replica_seconds / HOUR, "Hours", line.replica_cost, "measured"
    if line.untold_cost:
        yield "Usage without detail", Decimal(1), "Units", line.untold_cost, "measured"
    if line.estimated_replica_cost:
        yield (
            "Replica Hours",
            line.estimated_replica_seconds / HOUR,
            "Hours",
            line.estimated_replica_cost,
            "estimated",
        )
    if line.estimated_tokens_cost:
        yield "Unreported Tokens", Decimal(1), "Units", line.estimated_tokens_cost, "estimated"


def _row(
    source: Source, bucket: Bucket, tier: str, origin: Origin, charge: tuple[str, Decimal, str, Decimal, str]
) -> dict[str, str | None]:
    meter, quantity, unit, cost, provenance = charge
    kept, namespace = source.kept, source.namespace
    amount, resource = number(cost), tier or "(not counted yet)"
    tags = {
        "policy": origin.policy,
        "class": origin.class_name,
        "consumer": origin.consumer,
        "purpose": {IDLE: "idle", UNTOLD: "no detail", PENDING: "not counted yet"}.get(
            origin, origin.purpose or "answer"
        ),
    }
    # Shares of replicas are kept in whole microseconds.
    each = _unit_price(cost, quantity, Decimal("1e-9") if unit == "Hours" else Decimal("1e-10"))
    return {
        "BilledCost": amount,
        "BillingAccountId": f"{namespace}/{kept.name}",
        "BillingAccountName": kept.name,
        "BillingAccountType": "NamespaceBudget",
        "BillingCurrency": kept.currency,
        "BillingPeriodEnd": _time(bucket.billing[1]),
        "BillingPeriodStart": _time(bucket.billing[0]),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{meter} of tier {resource}" + (", idle" if origin == IDLE else ""),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _time(bucket.end),
        "ChargePeriodStart": _time(bucket.start),
        "ConsumedQuantity": number(quantity * MILLION if "Tokens" in unit else quantity),
        "ConsumedUnit": "Tokens" if "Tokens" in unit else unit,
        "ContractedCost": amount,
        "ContractedUnitPrice": each,
        "EffectiveCost": amount,
        "InvoiceIssuerName": "Tierwise",
        "ListCost": amount,
        "ListUnitPrice": each,
        "PricingCategory": "Standard",
        "PricingQuantity": number(quantity),
        "PricingUnit": unit,
        "ProviderName": "Tierwise",
        "PublisherName": "Tierwise",
        "ResourceId": f"{namespace}/{resource}",
        "ResourceName": resource,
        "ResourceType": "ModelTier",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{namespace}/{resource}/{meter.lower().replace(' ', '-')}",
        "SkuMeter": meter,
        "SubAccountId": namespace,
        "SubAccountName": namespace,
        "SubAccountType": "Namespace",
        "Tags": json.dumps({name: value for name, value in tags.items() if value}, sort_keys=True),
        "x_Provenance": provenance,
    }


def _unit_price(cost: Decimal, quantity: Decimal, tolerance: Decimal) -> str | None:
    """The price of one unit, where it is one: the shortest, of at most six decimals, that gives the cost.

    Of what is too small to tell prices apart, none.
    """
    if not quantity or cost < Decimal("1e-4"):
        return None
    for digits in range(2, 7):
        price = round(cost / quantity, digits)
        if abs(price * quantity - cost) < tolerance:
            return number(price)
    return None


def number(value: Decimal) -> str:
    """Digits and a point, nothing else."""
    return format(value.normalize(), "f") if value else "0"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
