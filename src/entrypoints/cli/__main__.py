"""``python -m entrypoints.cli`` is ``inventory``."""

from entrypoints.cli import main

main()
