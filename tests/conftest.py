"""No example of a property test has a deadline: a busy machine is no counter-example. pytest bounds the whole test."""

from hypothesis import settings

settings.register_profile("tierwise", deadline=None)
settings.load_profile("tierwise")
