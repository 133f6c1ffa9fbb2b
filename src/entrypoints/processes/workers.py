"""More processes on the same port: the first one serves as well and keeps the others alive; there is no idle master.

Each is an ``inventory api`` that inherits the listening socket, so that a connection waiting while one of them dies is
taken by another. Their standard input is a pipe from the first: when it closes, for whatever reason, they stop.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import structlog

from entrypoints.config import Config, as_environment
from entrypoints.processes.process import END_SECONDS

RESTART_SECONDS = 1.0
_log = structlog.get_logger("workers")


async def keep_workers(config: Config, listener: socket.socket, stop: asyncio.Event) -> None:
    """Keep ``config.workers - 1`` further processes serving ``listener`` until ``stop``, then wait for them to end.

    One that dies is started again after ``RESTART_SECONDS``, however often.
    """
    keepers = [asyncio.create_task(_keep(config, listener.fileno())) for _ in range(config.workers - 1)]
    try:
        await stop.wait()
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


def stop_with_parent(stop: Callable[[], object]) -> None:
    """Call ``stop`` when the process that started this one is gone or closes the pipe."""

    def read() -> None:
        if not os.read(0, 1):
            asyncio.get_running_loop().remove_reader(0)
            stop()

    asyncio.get_running_loop().add_reader(0, read)


async def _keep(config: Config, listener: int) -> None:
    environment = {**os.environ, **as_environment(config), "INVENTORY_WORKERS": "1"}
    while True:
        try:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "entrypoints.cli", "api", "--inherited-listener", str(listener)),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(listener,),
                env=environment,
            )
        except OSError as error:
            _log.error("a worker could not be started and is tried again", reason=str(error))
            await asyncio.sleep(RESTART_SECONDS)
            continue
        try:
            code = await worker.wait()
        except asyncio.CancelledError:
            await _end(worker, seconds=config.drain_seconds + END_SECONDS * 3)
            raise
        _log.error("a worker died and is started again", worker=worker.pid, code=code)
        await asyncio.sleep(RESTART_SECONDS)


async def _end(worker: asyncio.subprocess.Process, *, seconds: float) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
    try:
        # Its requests in flight, its writer and its connections each have their time.
        async with asyncio.timeout(seconds):
            await worker.wait()
    except TimeoutError:
        worker.kill()
        await worker.wait()
