"""``inventory demo`` in the hands of the tests."""

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service import COMMAND, environment

PATIENCE_SECONDS = 60


class Demo:
    """A running demo and what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.file = folder / f"printed-{time.monotonic_ns()}"
        settings = environment()
        del settings["INVENTORY_AUTH_SECRET"]
        with self.file.open("w") as out:
            self.process = subprocess.Popen(
                [COMMAND, "demo", *arguments],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**settings, "COLUMNS": "200"},
            )

    @property
    def printed(self) -> str:
        return self.file.read_text()

    def wait_for(self, text: str) -> None:
        patience = time.monotonic() + PATIENCE_SECONDS
        while text not in self.printed:
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < patience, self.printed
            time.sleep(0.05)

    def copied(self, title: str) -> Any:
        """Run the line printed under a title, as a stranger would, and return its answer."""
        (line,) = re.findall(rf"# {re.escape(title)}\n(curl .*)", self.printed)
        ended = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=20, check=True)
        return json.loads(ended.stdout)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(15)


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[Demo]:
    """Run the demo until the block is left, from when it shows events on."""
    running = Demo(folder, *arguments)
    try:
        running.wait_for("Events appear below")
        yield running
    finally:
        running.process.kill()
        running.process.wait()
