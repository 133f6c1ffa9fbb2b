"""Files of rows, CSV or JSON lines, read as they come in pieces and written as they go out.

Whoever makes such a file by hand makes the same few mistakes, and so do spreadsheets: each is told by the line it
stands in. Memory does not grow with the file.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from core.errors import ValidationFailed
from core.files.kinds import LAYOUTS, kind_of, read_cells, read_values
from ports.imports import Format, SheetKind

LINE_MAX = 64 * 1024
"""Bytes of one row, with all the lines it spans."""
_SPANNED_MAX = 100
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


class Row(Struct, frozen=True):
    """A row of a file and the line it begins in: what it says, or the ``fault`` why it says nothing."""

    line: int
    said: Any = None
    fault: str = ""


class Sheet:
    """Reads a file that comes in pieces.

    Args:
        kind: what it holds; None to go by its columns, which CSV names and JSON lines do in their first line.
        format: CSV or JSON lines.
    """

    def __init__(self, kind: SheetKind | None, format: Format) -> None:
        self.kind = kind
        self._format = format
        self._columns: list[str] = []
        self._rest = b""
        self._record: list[str] = []
        self._line = 0
        self._begins = 1

    def feed(self, piece: bytes) -> Iterator[Row]:
        """Yield the rows that end in the next piece of the file.

        Raises:
            ValidationFailed: what follows cannot be read, or is not of the kind.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            yield from self._take(line)
        if len(self._rest) > LINE_MAX:
            raise ValidationFailed(
                f"Line {self._line + 1} does not end within {LINE_MAX // 1024} KB; end every line with LF or CR LF."
            )

    def end(self) -> Iterator[Row]:
        """Yield the last row, if the file does not end with an end of line.

        Raises:
            ValidationFailed: the file ends in the middle of a row, or holds none.
        """
        if self._rest:
            rest, self._rest = self._rest, b""
            yield from self._take(rest)
        if self._record:
            raise ValidationFailed(f"The quote that is opened in line {self._begins} is never closed.")
        if self._format == "csv" and not self._columns:
            raise ValidationFailed("The file is empty; its first line must name the columns.")

    def _take(self, line: bytes) -> Iterator[Row]:
        self._line += 1
        if self._line == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not self._record:
            self._begins = self._line
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            self._record.clear()
            what = f"byte {line[error.start]:#04x} at position {error.start + 1} is not UTF-8"
            yield from self._unreadable(f"{what}; save the file as UTF-8")
            return
        if "\0" in text:
            self._record.clear()
            yield from self._unreadable("it holds the character NUL")
            return
        if self._format == "jsonl":
            if text.strip():
                yield self._object(text)
            return
        self._record.append(text)
        record = "\n".join(self._record)
        # A quote inside quotes is doubled, so a row is whole when their number is even.
        if record.count('"') % 2 == 0:
            self._record.clear()
            yield from self._whole(record)
        elif len(self._record) > _SPANNED_MAX or len(record) > LINE_MAX:
            raise ValidationFailed(f"The quote that is opened in line {self._begins} is not closed.")

    def _unreadable(self, fault: str) -> Iterator[Row]:
        if self._format == "csv" and not self._columns:
            raise ValidationFailed(f"Line {self._line} cannot be read: {fault}.")
        yield Row(self._line, fault=f"{fault[0].upper()}{fault[1:]}.")

    def _whole(self, record: str) -> Iterator[Row]:
        try:
            cells = next(csv.reader([record], strict=True), [])
        except csv.Error as error:
            yield from self._unreadable(f"the quotes are not as CSV has them ({error})")
            return
        if not any(cells):
            return
        if not self._columns:
            self._columns = self._read_header(cells)
            return
        yield self._row(cells)

    def _row(self, cells: list[str]) -> Row:
        if len(cells) != len(self._columns):
            fault = f"It has {len(cells)} cells, the first line names {len(self._columns)} columns."
            return Row(self._begins, fault=fault)
        if self.kind is None:
            raise AssertionError("the header settles the kind")
        texts = {name: _unescaped(cell) for name, cell in zip(self._columns, cells, strict=True)}
        try:
            return Row(self._begins, read_cells(self.kind, texts))
        except ValueError as error:
            return Row(self._begins, fault=f"{error}.")

    def _object(self, text: str) -> Row:
        try:
            values = msgspec.json.decode(text, type=dict[str, Any])
            if self.kind is None:
                self.kind = _kind_of(frozenset(values))
            return Row(self._line, read_values(self.kind, values))
        except msgspec.DecodeError as error:
            return Row(self._line, fault=f"It is not a JSON object: {error}.")
        except ValueError as error:
            return Row(self._line, fault=f"{error}.")

    def _read_header(self, cells: list[str]) -> list[str]:
        if len(cells) == 1 and (other := next((each for each in ";\t|" if each in cells[0]), None)):
            what = {";": "semicolons", "\t": "tabs", "|": "bars"}[other]
            raise ValidationFailed(f"The columns are separated by {what}; save the file as CSV separated by commas.")
        known = {_bare(name): name for layout in LAYOUTS.values() for name in (*layout.columns, *layout.told)}
        columns = [known.get(_bare(cell), cell.strip()) for cell in cells]
        if twice := {name for name in columns if columns.count(name) > 1}:
            raise ValidationFailed(f"The first line names {_listed(twice)} more than once.")
        if self.kind is None:
            self.kind = _kind_of(frozenset(columns))
        layout = LAYOUTS[self.kind]
        takes = f"A file of {self.kind} takes {', '.join(layout.columns)}."
        if unknown := {*columns} - layout.told.union(layout.columns):
            raise ValidationFailed(f"The first line names {_listed(unknown)}, which nobody reads. {takes}")
        if missing := layout.required - {*columns}:
            raise ValidationFailed(f"The first line does not name {_listed(missing)}. {takes}")
        return columns


def _kind_of(columns: frozenset[str]) -> SheetKind:
    if (kind := kind_of(columns)) is None:
        raise ValidationFailed(
            f"Columns {_listed(columns)} are those of no one kind of file; say which it is: {', '.join(LAYOUTS)}."
        )
    return kind


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:40]) if not name.isalnum() else name for name in sorted(names)[:20])


# -- writing -----------------------------------------------------------------------------------------------------------


def write_rows(rows: Iterable[Mapping[str, Any]], format: Format, *, header: bool) -> bytes:
    """Return rows, which have the same columns, as they stand in a file; ``header`` names the columns first.

    What a spreadsheet would take for a formula is put behind an apostrophe, which reading takes off again.
    """
    if format == "jsonl":
        return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    for row in rows:
        if header:
            writer.writerow(row)
            header = False
        writer.writerow([_cell(value) for value in row.values()])
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode() if value else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def _unescaped(cell: str) -> str:
    return cell[1:] if _ESCAPED.match(cell) else cell
