"""The root of every error that Tierwise raises on purpose."""


class TierwiseError(Exception):
    """Something that Tierwise can explain to the person who reads it."""
