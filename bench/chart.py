"""The chart of a run, a plain SVG that is readable on light and on dark ground.

A bar is as long as its row came to the aim, whatever the unit; a tick shows where the floor is. Where less is better
the aim is divided by what was measured, so that longer is always better.
"""

from collections.abc import Mapping
from html import escape
from textwrap import wrap

from rows import Measured, Row

WIDTH, LINE, TOP, LABELS, FIGURES = 860, 30, 34, 410, 90
BARS = WIDTH - LABELS - FIGURES
CAPTION = 140
"""Characters in a line below the bars."""
FULL = 1.5
"""A bar ends here, in aims, however far beyond the row came."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f } .axis { fill: #57606a; font-size: 11px }
  line { stroke: #57606a } .aim { stroke-dasharray: 3 3 } .floor { stroke: #24292f; stroke-width: 2 }
  .plain { fill: #8c959f } .reached { fill: #1a7f37 } .between { fill: #2f6fbd } .below { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .axis { fill: #9198a1 } line { stroke: #9198a1 } .floor { stroke: #e6edf3 }
    .reached { fill: #3fb950 } .between { fill: #58a6ff } .below { fill: #f0883e }
  }
"""


def draw(found: Mapping[str, Measured], rows: Mapping[str, Row], *, caption: str, judged: bool = True) -> str:
    """Return the chart of every row that has an aim; where it is not ``judged``, all bars have one colour."""
    named = [(rows[name], measured) for name, measured in found.items() if rows[name].aim]
    said = wrap(caption, CAPTION)
    end = TOP + LINE * len(named) + 2
    height = end + 10 + 15 * len(said)
    aim = LABELS + BARS / FULL
    below = "\n".join(
        f'<text class="axis" x="8" y="{end + 15 * line}">{escape(text)}</text>' for line, text in enumerate(said, 1)
    )
    bars = "\n".join(
        _bar(row, measured, TOP + LINE * place, judged=judged) for place, (row, measured) in enumerate(named)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">
<title>What was measured, as a share of what was aimed at</title>
<style>{STYLE}</style>
<line class="aim" x1="{aim:.0f}" x2="{aim:.0f}" y1="{TOP - 8}" y2="{end}"/>
<text class="axis" x="{aim:.0f}" y="{TOP - 14}" text-anchor="middle">aim</text>
<text class="axis" x="{LABELS}" y="{TOP - 14}">longer is better; the tick is the floor</text>
{bars}
{below}
</svg>
"""


def _bar(row: Row, measured: Measured, y: int, *, judged: bool) -> str:
    value, what = measured.value, (measured.what or row.what).replace("`", "")
    length = min(_share(row, value), FULL) * BARS / FULL
    floor = LABELS + min(_share(row, row.floor or 0), FULL) * BARS / FULL
    kind = (
        "plain"
        if not judged
        else "reached"
        if row.reaches(value, row.aim)
        else "between"
        if row.reaches(value, row.floor)
        else "below"
    )
    return (
        f'<text x="{LABELS - 10}" y="{y + 17}" text-anchor="end">{escape(what)}</text>\n'
        f'<rect class="{kind}" x="{LABELS}" y="{y + 4}" width="{length:.1f}" height="18" rx="2"/>\n'
        f'<line class="floor" x1="{floor:.0f}" x2="{floor:.0f}" y1="{y + 1}" y2="{y + 25}"/>\n'
        f'<text x="{WIDTH - 8}" y="{y + 17}" text-anchor="end">{shown(row, value)}</text>'
    )


def _share(row: Row, value: float) -> float:
    """How far a value came, in aims."""
    if not row.aim or not value:
        return 0.0
    return row.aim / value if row.less else value / row.aim


def shown(row: Row, value: float) -> str:
    """A ratio or a value with its unit, as short as can be told apart."""
    return f"{figure(value)} ×" if row.of_ratio else f"{figure(value)} {row.unit}"


def figure(value: float) -> str:
    """Three figures that matter."""
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
        if value < 1
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
    )
