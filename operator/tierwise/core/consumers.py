"""Who may call which namespace: the API keys and token identities that gateways accept at a moment.

What is presented decides, so each API key belongs to one consumer, and each identity to one consumer per namespace: the
oldest has it, the others are told. What is doubtful is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tierwise.api.consumer import ApiKey, Consumer, ConsumerStatus
from tierwise.core import conditions
from tierwise.core.claims import age_order
from tierwise.core.conditions import Finding
from tierwise.core.world import Key, World

MIN_KEY_LENGTH = 20
"""Characters: what a machine draws has at least 120 bits then; passwords that people choose do not belong here."""
MAX_KEY_LENGTH = 512


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """What a signed token says: its `iss`, and the claim that names the caller."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Why something that a consumer lists is not accepted.

    Attributes:
        reason: CamelCase. message: for people, with the remedy.
        lasting: nothing but a person will change it.
    """

    reason: str
    message: str
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Access:
    """Everything that is accepted.

    Attributes:
        keys: API key -> consumer.
        identities: (namespace, identity) -> consumer.
        first: identity -> namespace of its oldest consumer.
        problems: consumer -> what of it is not accepted, and why.
        accepted: consumer -> how many of its API keys are.
        expiries: consumer -> when the next of them expires.
    """

    keys: Mapping[str, Key] = field(repr=False)
    identities: Mapping[tuple[str, Identity], Key]
    first: Mapping[Identity, str]
    problems: Mapping[Key, tuple[Problem, ...]]
    accepted: Mapping[Key, int]
    expiries: Mapping[Key, datetime]

    @property
    def next_change(self) -> datetime | None:
        """When something expires next."""
        return min(self.expiries.values(), default=None)


def settle(world: World) -> Access:
    """What gateways accept at `world.now`."""
    keys: dict[str, Key] = {}
    identities: dict[tuple[str, Identity], Key] = {}
    first: dict[Identity, str] = {}
    labels: dict[tuple[str, str], Key] = {(key.namespace, key.name): key for key in world.consumers}
    problems: dict[Key, list[Problem]] = {}
    accepted: dict[Key, int] = {}
    expiries: dict[Key, datetime] = {}
    for key, consumer in sorted(world.consumers.items(), key=age_order):
        wrong = problems.setdefault(key, [])
        accepted[key] = 0
        if consumer.spec.suspend or consumer.metadata.deletion_timestamp is not None:
            continue
        for one in consumer.spec.api_keys or ():
            value = _value(world, key, one)
            if isinstance(value, Problem):
                wrong.append(value)
            elif keys.setdefault(value, key) != key:
                wrong.append(_taken(f"the API key in Secret {one.name!r}, key {one.key!r},", keys[value], key))
            else:
                accepted[key] += 1
                if one.expires_at is not None:
                    expiries[key] = min(one.expires_at, expiries.get(key, one.expires_at))
        for identity in (Identity(one.issuer, one.subject) for one in consumer.spec.jwt or ()):
            owner = identities.get((key.namespace, identity)) or labels.get((key.namespace, identity.subject), key)
            if owner != key:
                wrong.append(_taken(f"identity {identity.subject!r} of {identity.issuer}", owner, key))
                continue
            identities[key.namespace, identity] = key
            labels[key.namespace, identity.subject] = key
            first.setdefault(identity, key.namespace)
    return Access(
        keys=dict(sorted(keys.items())),
        identities=dict(sorted(identities.items())),
        first=dict(sorted(first.items())),
        problems={key: tuple(found) for key, found in sorted(problems.items()) if found},
        accepted=accepted,
        expiries=expiries,
    )


def status(world: World, access: Access, key: Key, consumer: Consumer) -> ConsumerStatus:
    """The status that a consumer should have now."""
    invalid = world.invalid.get(("Consumer", key))
    found = conditions.invalid(str(invalid), held=True) if invalid is not None else _findings(access, key, consumer)
    generation = consumer.metadata.generation
    return ConsumerStatus(
        observed_generation=generation,
        conditions=conditions.settle(found, consumer.status.conditions, generation=generation, now=world.now),
        accepted_keys=access.accepted.get(key, 0),
        next_expiry=access.expiries.get(key),
    )


def _findings(access: Access, key: Key, consumer: Consumer) -> tuple[Finding, ...]:
    if consumer.spec.suspend:
        return (conditions.not_ready("Suspended", "spec.suspend is true: all requests are refused"),)
    problems = access.problems.get(key, ())
    message = "; ".join(problem.message for problem in problems)
    if access.accepted.get(key, 0) or key in access.identities.values():
        # What else it lists may be on its way out, such as a key that expired in a rotation.
        return (conditions.ready("PartlyAccepted" if problems else "Accepted", message or "gateways accept it"),)
    if not problems:
        return (conditions.not_ready("Pending", "nothing of it is accepted yet"),)
    if all(problem.lasting for problem in problems):
        return conditions.stalled(problems[0].reason, message)
    return (conditions.not_ready(problems[0].reason, message),)


def _value(world: World, key: Key, one: ApiKey) -> str | Problem:
    where = f"Secret {one.name!r}, key {one.key!r}"
    if one.expires_at is not None and one.expires_at <= world.now:
        return Problem("KeyExpired", f"{where}: expired at {one.expires_at:%Y-%m-%dT%H:%M:%SZ}: remove it")
    secret = world.secrets.get(Key(key.namespace, one.name))
    raw = secret.data.get(one.key) if secret is not None else None
    if raw is None:
        return Problem("KeyNotFound", f"{where}: not found in this namespace: create it", lasting=False)
    try:
        # A trailing line break, as `kubectl create secret --from-file` leaves it, is not part of the key.
        text = raw.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not MIN_KEY_LENGTH <= len(text) <= MAX_KEY_LENGTH or not all(_visible(text)):
        limits = f"{MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} printable ASCII characters without spaces"
        return Problem("KeyUnusable", f"{where}: is not {limits}: draw one, as with `openssl rand -hex 24`")
    return text


def _visible(text: str) -> Iterator[bool]:
    return ("!" <= character <= "~" for character in text)


def _taken(what: str, owner: Key, loser: Key) -> Problem:
    # Another namespace's names are nobody else's business.
    whose = f"Consumer {owner.name}" if owner.namespace == loser.namespace else "another namespace's Consumer"
    return Problem("Taken", f"{what} belongs to {whose}, which has it by name or is older: use another")
