"""What was asked for, what was promised and what came of it: a log that survives, and the count of a total queue.

Every line is on the disk before the next step is taken, so that what a client knew is known whatever dies afterwards.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self


class Entry(NamedTuple):
    """One line: what happened (``attempted``, ``acknowledged`` or ``received``) to which of a queue's elements."""

    queue: str
    what: str
    id: str
    group: str = ""
    place: int = 0
    """Where in its group it belongs, from 1 on; 0 where there is no order."""


class History:
    """An append-only file of entries."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, entry: Entry) -> None:
        """Return when the line is on the disk."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def entries(self, queue: str, what: str) -> Iterator[Entry]:
        """Yield what was written of one queue; half a line, where a writer died, was never said."""
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and (entry := Entry(*json.loads(line)))[:2] == (queue, what):
                yield entry

    def ids(self, queue: str, what: str) -> list[str]:
        """Return the same without order and group."""
        return [entry.id for entry in self.entries(queue, what)]


class Tally(NamedTuple):
    """How a queue fared; the first two are numbers of elements, the others name those concerned."""

    attempted: int
    acknowledged: int
    lost: Sequence[str]
    """Acknowledged, and not there in the end."""
    unexpected: Sequence[str]
    """There, though nobody ever asked for it."""
    duplicated: Sequence[str]
    """There more than once."""
    recovered: Sequence[str]
    """There, though it was never acknowledged."""
    reordered: Sequence[str] = ()
    """Seen for the first time when its predecessor had not been, or its successor had."""


def total_queue(attempted: Collection[str], acknowledged: Collection[str], found: Iterable[str]) -> Tally:
    """Compare what was asked for and promised with what there is."""
    times = Counter(found)
    return Tally(
        attempted=len(set(attempted)),
        acknowledged=len(set(acknowledged)),
        lost=sorted(set(acknowledged) - times.keys()),
        unexpected=sorted(times.keys() - set(attempted)),
        duplicated=sorted(id for id, many in times.items() if many > 1),
        recovered=sorted((times.keys() & set(attempted)) - set(acknowledged)),
    )


def out_of_order(received: Iterable[Entry]) -> list[str]:
    """Return those that were first seen out of their group's order; each group's first place is 1."""
    seen: set[str] = set()
    last: dict[str, int] = defaultdict(int)
    wrong = []
    for entry in received:
        if entry.id in seen:
            continue
        seen.add(entry.id)
        if entry.place != last[entry.group] + 1:
            wrong.append(entry.id)
        last[entry.group] = entry.place
    return wrong
