"""``inventory consumer``: what nobody waits for, in a process of its own.

The outbox relay, product events and the dead letters among them, product checks that are owed, imports, housekeeping.
"""

from functools import partial

from entrypoints.config import Config
from entrypoints.processes.loops import relaying, run_beside


def run(config: Config) -> None:
    """Relay and consume until told to stop. Neither the broker nor the store needs to be there."""
    run_beside(config, "consumer", partial(relaying, prepares=False))
