"""`python -m tierwise.engine`."""

from tierwise.engine.cli import main

main()
