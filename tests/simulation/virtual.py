"""Virtual time: an event loop whose clock jumps to the next thing to happen, and processes in it that can be killed.

A process is whatever was started in its context, and what that started. One that is dead or stopped has its next steps
kept from it: no ``except`` and no ``finally`` of its code runs, as after ``kill -9``. Nothing here waits for anything
real, and with clocks, randomness and hashes in its hands a seed leads to the same steps every time.
"""

import asyncio
import heapq
import os
import random
import sys
import time
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any

from core import ids

EPOCH = 1_767_225_600.0
"""When every simulation begins: 2026-01-01T00:00:00Z."""
_STEPS = 500_000
_ROUNDS = 100
_PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """Something that runs until it is killed, and that can be stopped and go on as if no time had passed."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.died: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._stopped = False
        self._kept: list[_Step] = []
        self._context = copy_context()
        self._context.run(_PROCESS.set, self)
        loop.processes.append(self)

    def run(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin something in this process."""
        return self._loop.create_task(doing, context=self._context.copy())

    def kill(self) -> None:
        """End it between two steps; whatever it was about to do is not done."""
        self.alive = False
        if not self.died.done():
            self.died.set_result(None)

    def stop(self) -> None:
        """SIGSTOP."""
        self._stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self._stopped = False
        self._release()

    def lay_out(self) -> None:
        """Let what is left of it run to its end, which touches nothing any more (see ``VirtualLoop.clear``)."""
        self.alive, self._stopped = True, False
        self._release()

    def keeps(self, step: "_Step") -> bool:
        """Take a step away from it, if it must not make any."""
        if self.alive and not self._stopped:
            return False
        self._kept.append(step)
        return True

    def _release(self) -> None:
        kept, self._kept = self._kept, []
        self._loop.add_ready(kept)


class _Step:
    """What is to be called, and as whom; all that asyncio asks of a handle is that it can be cancelled."""

    __slots__ = ("arguments", "callback", "context")

    def __init__(self, callback: Callable[..., Any] | None, arguments: tuple[Any, ...], context: Context) -> None:
        self.callback = callback
        self.arguments = arguments
        self.context = context

    def cancel(self) -> None:
        self.callback = None


class _Task(asyncio.Task[Any]):
    """Tasks have numbers for hashes, so that a set of them has the same order every time."""

    def __init__(self, number: int, *args: Any, **options: Any) -> None:
        self._number = number
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


class Stuck(Exception):
    """It does not come to an end."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """Just what asyncio's tasks, futures and timers ask of a loop; it knows no sockets, threads or signals."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.failures: list[dict[str, Any]] = []
        self._now = 1_000.0
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._numbers = count(1)
        self._tasks: dict[_Task, None] = {}
        self._generators: list[AsyncGenerator[Any, Any]] = []

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run until ``main`` has ended, and return what it returns."""
        with self._running():
            task = self.create_task(main)
            for _ in range(_STEPS):
                self._step()
                if task.done():
                    return task.result()
            raise Stuck("It goes on and on.")

    def clear(self) -> None:
        """End every task there is, of the dead too: Python would end them anyhow, at any time, and complain."""
        with self._running():
            for process in self.processes:
                process.lay_out()
            self._end_tasks()
            for generator in self._generators:
                if generator.ag_frame is not None:
                    self.create_task(generator.aclose())
            self._end_tasks()
        self._timers.clear()

    def _end_tasks(self) -> None:
        for _ in range(_ROUNDS):
            if not (pending := list(self._tasks)):
                return
            for task in pending:
                task.cancel()
            for _ in range(20 * len(pending)):
                if not (self._ready or self._timers) or not self._tasks:
                    break
                self._step()
        raise Stuck(f"{len(self._tasks)} tasks do not end: {[*self._tasks][:3]}")

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Be the running loop, and know of every generator that is begun, lest one be ended after its loop."""
        hooks, before = sys.get_asyncgen_hooks(), events._get_running_loop()
        sys.set_asyncgen_hooks(firstiter=self._generators.append, finalizer=lambda _: None)
        events._set_running_loop(self)
        try:
            yield
        finally:
            events._set_running_loop(before)
            sys.set_asyncgen_hooks(*hooks)

    def add_ready(self, steps: list[_Step]) -> None:
        """Let these be next, in their order."""
        self._ready.extend(steps)

    def _step(self) -> None:
        if not self._ready:
            if not self._timers:
                raise Stuck("Everybody waits, and nothing will ever happen again.")
            self._now, _, timer = heapq.heappop(self._timers)
            self._ready.append(timer)
        step = self._ready.popleft()
        if (callback := step.callback) is None:
            return
        process = step.context.get(_PROCESS)
        if process is None or not process.keeps(step):
            try:
                step.context.run(callback, *step.arguments)
            except Exception as error:
                self.call_exception_handler({"message": f"{callback} raised", "exception": error})

    # -- what asyncio asks for ---------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        step = _Step(callback, args, copy_context() if context is None else context)
        self._ready.append(step)
        return step

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        step = _Step(callback, args, copy_context() if context is None else context)
        heapq.heappush(self._timers, (max(when, self._now), next(self._numbers), step))
        return step

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = _Task(next(self._numbers), coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


@contextmanager
def determined(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Let the clocks be the loop's, and everything random follow from ``seed``; afterwards all is as it was.

    The core reads the clock as ``time.monotonic``, draws by ``random`` and makes names in ``core/ids``: nothing else.
    """
    entropy = random.Random(seed)
    before = time.monotonic, time.time_ns, os.urandom, random.getstate(), ids._last
    time.monotonic = loop.time
    time.time_ns = lambda: int((EPOCH + loop.time()) * 1_000_000_000)
    os.urandom = entropy.randbytes
    random.seed(seed)
    ids._last = 0
    try:
        yield
    finally:
        time.monotonic, time.time_ns, os.urandom, state, ids._last = before
        random.setstate(state)
