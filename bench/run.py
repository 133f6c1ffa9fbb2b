"""``just bench``: measures the service beside its limits, in one run on one machine.

Nothing here fails because of a time; a row that cannot be measured is named and the exit code is 1.
"""

import sys
import traceback
from importlib import import_module
from pathlib import Path

import rich_click as click
from rich.console import Console

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the servers are the tests' own

from report import RESULTS, Run, kept, print_table, publish, save
from rig import FULL, QUICK, Rig
from rows import ROWS, Row

for module in (
    "http_rows",
    "reading_rows",
    "bulk_rows",
    "event_rows",
    "reconcile_rows",
    "growth_rows",
):  # they put their rows into the table, in this order
    import_module(module)
console = Console(width=None if sys.stdout.isatty() else 170)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Measure this row; may be given again.")
@click.option("--skip", multiple=True, type=click.Choice(list(ROWS)), help="Leave this row out; may be given again.")
@click.option("--quick", is_flag=True, help="Short rounds: whether it works, not how fast.")
@click.option("--publish", "publishes", is_flag=True, help="Draw docs/bench.svg and put the table into the README.")
@click.option("--remark", default="", help="What readers of the table should know of this run.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the run is kept, as JSON.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True),
    help="A kept run; its rows stand in for those that are not measured now.",
)
@click.option("--list", "lists", is_flag=True, help="Name the rows and measure nothing.")
def main(
    *,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    quick: bool,
    publishes: bool,
    remark: str,
    results: Path,
    beside: Path | None,
    lists: bool,
) -> None:
    """Measure the service beside its limits and print how it compares."""
    if lists:
        for row in ROWS.values():
            click.echo(f"{row.name:<12} {row.what} ({row.unit}{_goals(row)})")
        return
    chosen = {name: row for name, row in ROWS.items() if (name in only or not only) and name not in skip}
    run = Run(quick=quick, remark=remark, found=kept(beside) if beside else {})
    with Rig(QUICK if quick else FULL) as rig:
        for name, row in chosen.items():
            _measure(run, rig, name, row)
            save(run, ROWS, results)
    print_table(console, run, ROWS)
    console.print(f"Saved in {save(run, ROWS, results)}", highlight=False, soft_wrap=True)
    if publishes:
        publish(run, ROWS)
    sys.exit(1 if run.failed else 0)


def _measure(run: Run, rig: Rig, name: str, row: Row) -> None:
    with console.status(f"{name}: {row.what}"):
        try:
            run.found[name] = row.measure(rig)
        except Exception as error:
            traceback.print_exc()
            run.failed[name] = f"{type(error).__name__}: {error}"
            return
    console.print(f"{name}: {run.found[name].value:.3g}", highlight=False)


def _goals(row: Row) -> str:
    if row.floor is None:
        return ""
    return f"; floor {row.floor:g}, aim {row.aim:g}"


if __name__ == "__main__":
    main()
