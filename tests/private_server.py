"""A server in the hands of the tests: its processes, its port, its folder, and how all three go away again.

A server ends when it is told to, when its ``with`` block ends, and when the test process ends in any way whatever.
"""

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

import psutil

LOOPBACK = "127.0.0.1"
START_SECONDS = 100
STOP_SECONDS = 30

# The kernel ends a server when the *thread* that forked it ends, however that came about (SIGKILL and os._exit too).
# So one thread forks them all and lives as long as this process: a test may restart a server from any thread.
_forks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="servers")
_setpriv = shutil.which("setpriv")
_DIE_WITH_US = [_setpriv, "--pdeathsig", "KILL"] if _setpriv else []


class Server(ABC):
    """A private server, started by ``with``; or a stranger's known by URL, which is then never started or stopped."""

    package: ClassVar[str]
    program: ClassVar[str]
    folders: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, url: str | None = None) -> None:
        self.owned = url is None
        self._home = os.getpid()
        self.port = free_port()
        self.url = url or self._own_url()
        self._processes: list[psutil.Popen] = []

    def __enter__(self) -> Self:
        if self.owned:
            self.folder = self.installed()
            self.directory = Path(tempfile.mkdtemp(prefix="inventory-test-"))
            self.log = self.directory / "server.log"
            atexit.register(self._discard)
            self._prepare()
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.owned:
            atexit.unregister(self._discard)
            self._discard()

    def __getstate__(self) -> dict[str, object]:
        """What another process may know: where it is, not how to stop it."""
        return vars(self) | {"_processes": []}

    @classmethod
    def installed(cls) -> Path:
        """The folder of the newest server's programs; installs them when there are none and that is possible.

        Raises:
            RuntimeError: there are none; the message has the command that would install them.
        """
        if cls._find() is None:
            apt_install(cls.package)
        if (folder := cls._find()) is None:
            raise RuntimeError(f"{cls.package} is installed, yet {cls.program} is not in {cls.folders} nor on PATH.")
        return folder

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._processes[-1].pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended, by itself or by us."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            RuntimeError: it ended or stayed silent (the message has the end of its log), runs already, or is not ours.
        """
        self._refuse_unless(self.owned and self._home == os.getpid())
        if self._processes:
            raise RuntimeError(f"{self.program} is running already; restart() stops it first.")
        self._launch()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.program} did not start. Its log ends:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in an orderly way; whatever of it outlasts the patience is killed."""
        self._refuse_unless(self.owned and self._home == os.getpid())
        while self._processes:
            process = self._processes.pop()
            family = _family(process)
            with suppress(psutil.NoSuchProcess):
                process.send_signal(self.stop_signal)
                process.resume()
            _kill(remaining(family, seconds=STOP_SECONDS))
            process.wait()

    def kill(self) -> None:
        """End all its processes at once, as a power failure would."""
        self._refuse_unless(self.owned and self._home == os.getpid())
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()  # so that it has no more children while they are counted
        _kill([member for process in self._processes for member in _family(process)])
        while self._processes:
            self._processes.pop().wait()

    def restart(self) -> None:
        """Stop it if it runs, and start it with the same port and data."""
        self.stop()
        self.start()

    @classmethod
    def _find(cls) -> Path | None:
        found = sorted(Path("/").glob(f"{cls.folders}/{cls.program}"))
        on_path = shutil.which(cls.program)
        return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None

    def _spawn(self, *command: str | Path, env: dict[str, str] | None = None, user: str | None = None) -> None:
        with self.log.open("ab") as log:
            started = _forks.submit(
                psutil.Popen,
                [*_DIE_WITH_US, *command],
                cwd=self.directory,
                env=env,
                user=user,
                group=user,
                extra_groups=[] if user else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is meant for pytest, which stops the servers when it is done with them
            )
            self._processes.append(started.result())

    def _discard(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def _refuse_unless(self, ours: bool) -> None:
        if not ours:
            raise RuntimeError(
                f"{self.url} is not ours to start or stop; {type(self).__name__}() makes a server that is."
            )

    @abstractmethod
    def _own_url(self) -> str: ...

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _launch(self) -> None: ...

    @abstractmethod
    def _answers(self) -> bool: ...


def free_port() -> int:
    """A free loopback port below the range the kernel hands out.

    From that range a client that keeps connecting to a server that is down ends up connected to itself.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise RuntimeError("A hundred ports were tried and none is free.")


def apt_install(package: str) -> None:
    """Install a Debian package without starting its service.

    Raises:
        RuntimeError: this is not root on Debian, or it failed; the message has the command to run by hand.
    """
    by_hand = f"The tests need {package}; install it with: apt-get install {package}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(by_hand)
    with _no_service_starts():
        _apt("update")  # may fail and not matter: what is known of the packages may do
        if _apt("install", "--no-install-recommends", package) != 0:
            raise RuntimeError(by_hand)


def _apt(*arguments: str) -> int:
    command = ["apt-get", "--quiet", "--yes", "--option=DPkg::Lock::Timeout=300", *arguments]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


@contextmanager
def _no_service_starts() -> Iterator[None]:
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # then it is for this machine's owner to say
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return [process]


def remaining(processes: Iterable[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    """Those that still run after so long; a zombie does not, and perhaps nobody comes to fetch it."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    remaining(processes, seconds=STOP_SECONDS)
