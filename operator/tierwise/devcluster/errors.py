"""What can go wrong with the development cluster, said so that the reader can act on it."""

from tierwise.errors import TierwiseError


class DevClusterError(TierwiseError):
    """The development cluster can not do what was asked."""


class BuildError(DevClusterError):
    """The cluster's programs could not be built."""


class NotRunningError(DevClusterError):
    """No cluster of that name runs."""
