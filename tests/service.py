"""The real ``inventory`` command in the hands of the tests: subprocesses on free loopback ports, told what to lean on.

What they log is searched for secrets, and printed when the test that started them fails.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from signal import SIGTERM
from typing import Any, Self

import httpx2
import psutil
import secrecy
from private_server import LOOPBACK, Server, free_port

from adapters.tokens.signing import mint

SECRET = secrecy.secret("known-to-the-tests-and-to-nobody-else")
COMMAND = Path(sys.executable).with_name("inventory")
_LINES_SHOWN = 50


def no_broker() -> str:
    """The URL of a RabbitMQ that is not there: stock is sold all the same."""
    return f"amqp://guest:guest@{LOOPBACK}:{free_port()}/"


def migrate(store: str, broker: str) -> None:
    """Run ``inventory migrate`` to its end.

    Raises:
        CalledProcessError: it failed; what it said is on this process's standard error.
    """
    subprocess.run([COMMAND, "migrate"], env=environment(store=store, broker=broker), check=True, timeout=60)


class Service(Server):
    """One ``inventory`` process, with its workers where there are several; the port stays over restarts.

    Args:
        command: ``serve``, ``api``, ``consumer`` or ``reconciler``.
        settings: by name, such as ``workers=4``.
    """

    package = "inventory-service"
    program = COMMAND.name
    folders = str(COMMAND.parent).lstrip("/")
    stop_signal = SIGTERM

    def __init__(self, command: str, *, store: str, broker: str, **settings: Any) -> None:
        super().__init__()
        self._command = command
        self._workers = settings.get("workers", 1)
        self._serves = command in ("serve", "api")
        if self._serves:
            settings["port"] = self.port
        self.store = store
        self._settings = {"store": store, "broker": broker, **settings}

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.stop()
            told = [line for line in self.logged().splitlines() if '"logger": "access"' not in line]
            print(f"\n-- {self._command} on {self.port} logged, in the end:", *told[-_LINES_SHOWN:], sep="\n")
        super().__exit__(*error)

    def pids(self) -> set[int]:
        """The process ids of it and of its workers."""
        return {self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))}

    def end(self, *, seconds: float) -> int:
        """Tell it to stop and return its exit code; all of its processes must have ended by then.

        Raises:
            TimeoutExpired: it has not ended in so many seconds.
        """
        (process,) = self._processes
        family = [psutil.Process(pid) for pid in self.pids()]
        process.terminate()
        code: int = process.wait(seconds)
        assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]
        self._processes.clear()
        return code

    def logged(self) -> str:
        """All it has logged, over all its lives."""
        return self.log.read_text(errors="replace")

    def client(self) -> httpx2.Client:
        """A client with an administrator's token, to be closed."""
        return httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {token()}"}, trust_env=False)

    def _discard(self) -> None:
        self.stop()
        told = self.logged()
        super()._discard()
        secrecy.check(told)

    def _own_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        self.log.touch()

    def _launch(self) -> None:
        self._log_start = self.log.stat().st_size
        self._spawn(COMMAND, self._command, env=environment(**self._settings))

    def _answers(self) -> bool:
        """Whether every process has said that it is ready, and, with HTTP, that requests can be answered."""
        if self.log.read_bytes()[self._log_start :].count(b'"event": "ready"') < self._workers:
            return False
        if not self._serves:
            return True
        try:
            return httpx2.get(f"{self.url}/health/ready", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False


class Fleet:
    """Several services that start, live and end together."""

    def __init__(self, members: Sequence[Service]) -> None:
        self.members = members

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def urls(self) -> list[str]:
        """Where they answer."""
        return [member.url for member in self.members]


def token(role: str = "inventory-admin", *, subject: str = "tests") -> str:
    """A token with this role; an administrator may do everything."""
    issuer = audience = "inventory-service"
    return secrecy.secret(mint(SECRET, issuer=issuer, audience=audience, subject=subject, roles=[role], lifetime=3_600))


def environment(**settings: Any) -> dict[str, str]:
    """The variables of a subprocess: these settings and no others."""
    ours = {f"INVENTORY_{name.upper()}": str(value) for name, value in settings.items()}
    others = {name: value for name, value in os.environ.items() if not name.startswith("INVENTORY_")}
    if others.pop("PYTHONDONTWRITEBYTECODE", ""):  # else every start compiles everything, which takes seconds
        others["PYTHONPYCACHEPREFIX"] = _bytecode_folder()
    return others | ours | {"INVENTORY_AUTH_SECRET": SECRET}


@cache
def _bytecode_folder() -> str:
    folder = tempfile.mkdtemp(prefix="inventory-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
