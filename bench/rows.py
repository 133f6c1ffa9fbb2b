"""What a row of the table is, and what measuring one gives.

A row is a function under ``@row(...)`` that takes the rig and returns ``Measured``; nothing else has to know of it. A
ratio is taken round by round, ours and the baseline in turn, because the machine's own speed drifts.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from rig import Rig


class Sample(Struct, frozen=True):
    """One round of one side: a rate, and the CPU time that one unit of it took, by who took it (microseconds)."""

    value: float
    cpu: Mapping[str, float] = {}


class Measured(Struct, frozen=True, kw_only=True):
    """All rounds of a row.

    ``values`` is what floor and aim are held against: ratios where there is a ``baseline``, else what was measured.
    ``what`` says what was measured where that is not what the row is called: less of it, for a quick look. ``notes``
    are further figures of the same run, in words.
    """

    values: Sequence[float]
    ours: Sequence[float]
    baseline: Sequence[float] = ()
    cpu: Mapping[str, float] = {}
    what: str = ""
    notes: Sequence[str] = ()

    @property
    def value(self) -> float:
        """The median round."""
        return median(self.values)


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table.

    ``unit`` is that of what is measured, ``of_ratio`` whether floor and aim are for its ratio to the baseline, and
    ``less`` whether less is better. A row without ``floor`` is printed and held against nothing.
    """

    name: str
    what: str
    unit: str
    measure: "Callable[[Rig], Measured]"
    floor: float | None = None
    aim: float | None = None
    of_ratio: bool = True
    less: bool = False

    def reaches(self, value: float, goal: float | None) -> bool | None:
        """Whether ``value`` is as good as ``goal``; None where there is no goal."""
        if goal is None:
            return None
        return value <= goal if self.less else value >= goal


ROWS: dict[str, Row] = {}
"""Every row by name, in the order of the table."""


def row(
    name: str,
    what: str,
    *,
    unit: str,
    floor: float | None = None,
    aim: float | None = None,
    of_ratio: bool = True,
    less: bool = False,
) -> "Callable[[Callable[[Rig], Measured]], Callable[[Rig], Measured]]":
    """Put the function below into the table."""

    def add(measure: "Callable[[Rig], Measured]") -> "Callable[[Rig], Measured]":
        ROWS[name] = Row(
            name=name, what=what, unit=unit, floor=floor, aim=aim, of_ratio=of_ratio, less=less, measure=measure
        )
        return measure

    return add


def alternate(
    ours: Callable[[], Sample],
    baseline: Callable[[], Sample],
    *,
    rounds: int,
    what: str = "",
    notes: Sequence[str] = (),
) -> Measured:
    """Measure both sides in turn, so many rounds after one that warms both up, and take the ratio of each round."""
    ours(), baseline()
    pairs = [(ours(), baseline()) for _ in range(rounds)]
    return Measured(
        values=[mine.value / other.value for mine, other in pairs],
        ours=[mine.value for mine, _ in pairs],
        baseline=[other.value for _, other in pairs],
        cpu=_cpu([mine for mine, _ in pairs]) | _cpu([other for _, other in pairs], "baseline's "),
        what=what,
        notes=notes,
    )


def absolute(values: Sequence[float], *, what: str = "", notes: Sequence[str] = ()) -> Measured:
    """What is held against floor and aim as it was measured."""
    return Measured(values=values, ours=values, what=what, notes=notes)


def _cpu(samples: Sequence[Sample], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{who}": median(sample.cpu[who] for sample in samples) for who in samples[0].cpu}
