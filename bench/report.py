"""What a run says: a table for the terminal and for the README, a document for machines, a chart."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec
from chart import draw, figure, shown
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rows import Measured, Row

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
CHART = ROOT / "docs" / "bench.svg"
README = ROOT / "README.md"
_BEGIN, _END = "<!-- bench: `just bench --publish` writes this -->", "<!-- bench ends -->"
_MARKS = {True: "met", False: "missed", None: "–"}
_HEADINGS = ("measure", "measured", "baseline", "ratio or value", "floor", "", "aim", "")


class Run(Struct, kw_only=True):
    """One run of some rows: what was found, and what failed.

    A ``quick`` one says that things work; what it reaches is not said to be reached.
    """

    quick: bool
    remark: str = ""
    began: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    found: dict[str, Measured] = {}
    failed: dict[str, str] = {}

    def in_order(self, rows: Mapping[str, Row]) -> Iterator[tuple[str, Measured]]:
        """What was found, in the order of the table."""
        return ((name, self.found[name]) for name in rows if name in self.found)

    @property
    def where(self) -> str:
        """The machine and the day, in words."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        python = platform.python_version()
        return (
            f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.machine()}, Python {python}, "
            f"{self.began:%Y-%m-%d}" + (f"; {self.remark}" if self.remark else "")
        )


def print_table(console: Console, run: Run, rows: Mapping[str, Row]) -> None:
    """Print the table, and below it the CPU times and notes."""
    table = Table(title=run.where, title_justify="left", expand=False)
    for place, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if place == 0 or not heading else "right", overflow="fold")
    for cells in _cells(run, rows):
        table.add_row(*cells)
    console.print(table)
    for name, measured in run.in_order(rows):
        cpu = ", ".join(f"{who} {micros:,.0f}" for who, micros in measured.cpu.items())
        said = [f"CPU µs each: {cpu}"] if cpu else []
        for note in (*said, *measured.notes):
            console.print(f"  {name}: {note}", highlight=False, soft_wrap=True)
    for name, why in run.failed.items():
        console.print(f"  {name} could not be measured: {why}", style="red", highlight=False, soft_wrap=True)


def save(run: Run, rows: Mapping[str, Row], folder: Path) -> Path:
    """Write the run's document and return where it is."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{run.began:%Y%m%d-%H%M%S}.json"
    measured = [
        {
            "name": name,
            "unit": rows[name].unit,
            "floor": rows[name].floor,
            "aim": rows[name].aim,
            "value": found.value,
            **msgspec.to_builtins(found),
            "what": found.what or rows[name].what,
        }
        for name, found in run.in_order(rows)
    ]
    document = {"where": run.where, "quick": run.quick, "began": run.began, "rows": measured, "failed": run.failed}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2))
    return file


def kept(file: Path) -> dict[str, Measured]:
    """Return what a run that was saved in ``file`` has found."""
    rows = msgspec.json.decode(file.read_bytes())["rows"]
    return {row["name"]: msgspec.convert(row, Measured) for row in rows}


def publish(run: Run, rows: Mapping[str, Row]) -> None:
    """Draw the chart and put the table into the README, between its two marks."""
    CHART.parent.mkdir(exist_ok=True)
    CHART.write_text(draw(dict(run.in_order(rows)), rows, caption=run.where, judged=not run.quick), encoding="utf-8")
    before, rest = README.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    block = "\n".join((_BEGIN, *_markdown(run, rows), _END))
    README.write_text(before + block + after, encoding="utf-8")


def _markdown(run: Run, rows: Mapping[str, Row]) -> Iterator[str]:
    yield f"![What was measured beside its floor and aim]({CHART.relative_to(ROOT)})"
    yield ""
    yield f"| {' | '.join(_HEADINGS)} |"
    yield "|---|" + "--:|" * (len(_HEADINGS) - 1)
    for cells in _cells(run, rows):
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Measured on {run.where}."


def _cells(run: Run, rows: Mapping[str, Row]) -> Iterator[tuple[str, ...]]:
    for name, measured in run.in_order(rows):
        row, value = rows[name], measured.value
        spread = f" ({figure(min(measured.values))}–{figure(max(measured.values))})" if len(measured.values) > 1 else ""
        ratio = f"{shown(row, value)}{spread}"
        baseline = _rate(measured.baseline, row) if measured.baseline else "–"
        reached = [_MARKS[None if run.quick else row.reaches(value, goal)] for goal in (row.floor, row.aim)]
        yield (
            measured.what or row.what,
            _rate(measured.ours, row),
            baseline,
            ratio,
            _goal(row.floor),
            reached[0],
            _goal(row.aim),
            reached[1],
        )


def _rate(values: Sequence[float], row: Row) -> str:
    return f"{figure(median(values))} {row.unit}"


def _goal(goal: float | None) -> str:
    return "–" if goal is None else f"{goal:g}"
