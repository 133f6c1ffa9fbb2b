"""Clients by the hundred: processes that run ``load.py``, and what they have been answered so far."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO, Self

import load
from load import Answer, Call
from service import environment, token


class Clients:
    """Processes with so many connections each, that share ``calls`` among them; ``go`` lets them all loose at once.

    Args:
        urls: services; the calls go to each in turn.
        folder: where plans and answers are kept; made here.
        retry: whether 503 and lost connections are tried again, with the same key.
        per_second: how many calls all clients together make in a second; as fast as they can when left out.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        *,
        urls: Sequence[str],
        folder: Path,
        processes: int = 4,
        connections: int = 100,
        retry: bool = False,
        per_second: float | None = None,
    ) -> None:
        self._calls = calls
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self._files: list[BinaryIO] = []
        self._answers: list[Answer] = []
        rate = per_second / processes if per_second else None
        common = {"token": token(), "connections": connections, "retry": retry, "per_second": rate}
        addressed = [(urls[number % len(urls)] + call.path, call) for number, call in enumerate(calls)]
        self._plans = [common | {"calls": addressed[number::processes]} for number in range(processes)]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        for number, plan in enumerate(self._plans):
            given, got = self._folder / f"plan-{number}.json", self._folder / f"answers-{number}.jsonl"
            given.write_text(json.dumps(plan))
            got.touch()
            self._files.append(got.open("rb"))
            command = [sys.executable, load.__file__, str(given), str(got)]
            pipe = subprocess.PIPE
            self._processes.append(subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True))
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(BrokenPipeError):
                    stream.close()

    def go(self) -> None:
        """Begin."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def wait_for(self, count: int, *, seconds: float = 30.0) -> None:
        """Return as soon as ``count`` calls have their definite answer."""
        deadline = time.monotonic() + seconds
        while (seen := sum(answer.definite for answer in self.answers())) < count:
            assert time.monotonic() < deadline, f"Only {seen} of {count} calls were answered in {seconds:g} s."
            time.sleep(0.0005)

    def finish(self, *, seconds: float = 60.0) -> dict[str, Answer]:
        """Wait until every client has ended; return the last answer to each key."""
        deadline = time.monotonic() + seconds
        codes = [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self._processes]
        assert set(codes) == {0}
        last = {answer.key: answer for answer in self.answers()}
        assert last.keys() == {call.key for call in self._calls}
        return last

    def answers(self) -> list[Answer]:
        """Every answer so far, in the order in which each client got it."""
        self._answers += [answer for file in self._files for answer in _read_on(file)]
        return self._answers


def _read_on(file: BinaryIO) -> Iterator[Answer]:
    while (line := file.readline()).endswith(b"\n"):
        yield Answer(**json.loads(line))
    file.seek(-len(line), SEEK_CUR)  # half a line: it is read when it is whole
