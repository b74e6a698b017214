"""What can go wrong in a demo run, each with what the person can do about it."""

from tierwise.errors import TierwiseError


class DemoError(TierwiseError):
    """The demo can not go on; the message says why."""


class StepFailedError(DemoError):
    """A program that the demo starts (kubectl, helm) failed, or something did not become ready in time."""
