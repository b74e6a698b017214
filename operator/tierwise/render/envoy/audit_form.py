"""What the parts of `audit` share: a resource that has another form than the one that is understood is a way out."""

from tierwise.render.envoy.bundle import Resource


class Unknown(Exception):  # noqa: N818 - never leaves the audit
    """A resource has another form than the one that is understood."""


def only(found: Resource, known: set[str], where: str) -> None:
    """What is not understood could be a way out.

    Raises:
        Unknown: something else is found than what is known.
    """
    more = sorted(set(found) - known)
    if more:
        raise Unknown(f"{where} has {', '.join(more)}")
