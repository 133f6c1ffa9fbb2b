"""Files as people and spreadsheets make them: what is wrong is told by its line, what is right is read as meant."""

import csv
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ValidationFailed
from core.files.kinds import CountRow, ReceiptRow
from core.files.sheets import LINE_MAX, Row, Sheet, write_rows
from ports.imports import Format, SheetKind

HEAD = b"sku,warehouseId,quantity\n"


def read(content: bytes, kind: SheetKind | None = None, *, format: Format = "csv", piece: int = 0) -> list[Row]:
    """Return the rows of a file that comes in pieces of so many bytes."""
    sheet = Sheet(kind, format)
    step = piece or max(len(content), 1)
    rows = [row for start in range(0, len(content), step) for row in sheet.feed(content[start : start + step])]
    return [*rows, *sheet.end()]


def refusal(content: bytes, kind: SheetKind | None = None) -> str:
    """Return why a file is refused as a whole."""
    with pytest.raises(ValidationFailed) as refused:
        read(content, kind)
    return refused.value.detail


def faults(content: bytes) -> dict[int, str]:
    """Return what is wrong with each bad line of a file of receipts."""
    return {row.line: row.fault for row in read(HEAD + content) if row.said is None}


def receipt(sku: str, quantity: int) -> ReceiptRow:
    """Return the row that stands in the files below."""
    return ReceiptRow(sku=sku, warehouse_id="wh_1", quantity=quantity)


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_what_a_spreadsheet_saves_is_read(piece: int) -> None:
    """A mark before the first byte, CR LF, quotes, columns as a person calls them, blank lines, no end of line."""
    content = b'\xef\xbb\xbfSKU,Warehouse ID, quantity \r\nA,wh_1,5\r\n\r\n,,\r\n"B ""x"", y",wh_1,6'

    assert read(content, piece=piece) == [Row(2, receipt("A", 5)), Row(5, receipt('B "x", y', 6))]


def test_a_row_over_several_lines_counts_them() -> None:
    """It is named by the line it begins in, and so is the next; no field of ours spans lines."""
    assert faults(b'"a\nb",wh_1,3\nC,wh_1,x\n').keys() == {2, 4}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"A,wh_1,1e3", "quantity: '1e3' is not a whole number, written with digits alone."),
        (b"A,wh_1,-1", "quantity: '-1' is not a whole number, written with digits alone."),
        (b"A,wh_1,0", "quantity: Expected `int` >= 1."),
        (b"A,wh_1,99999999999999999999999", "quantity: Expected `int` <= 1000000000."),
        (b"A,wh_1,", "Object missing required field `quantity`."),
        (b"A,,1", "name the item by inventoryItemId, or by sku and warehouseId."),
        (b"A,wh_1", "It has 2 cells, the first line names 3 columns."),
        (b"A,wh_1,1,1", "It has 4 cells, the first line names 3 columns."),
        (b"\xff,wh_1,1", "Byte 0xff at position 1 is not UTF-8; save the file as UTF-8."),
        (b"A\0,wh_1,1", "It holds the character NUL."),
        (b'"A"b,wh_1,"1"', "The quotes are not as CSV has them"),
    ],
)
def test_a_bad_line_is_told_and_the_others_are_read(line: bytes, why: str) -> None:
    """All of them at once: reading goes on behind each."""
    rows = read(HEAD + b"A,wh_1,1\n" + line + b"\nB,wh_1,2\n")

    assert [row.line for row in rows] == [2, 3, 4]
    assert rows[1].fault.startswith(why) and rows[1].said is None
    assert (rows[0].said, rows[2].said) == (receipt("A", 1), receipt("B", 2))


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"", None, "is empty"),
        (b"sku;warehouseId;quantity\nA;wh_1;1\n", None, "semicolons; save the file as CSV separated by commas"),
        (b"sku\twarehouseId\n", None, "tabs"),
        (b"sku,SKU,quantity\n", None, "names sku more than once"),
        (b"sku,colour,quantity\n", "receipts", "names colour, which nobody reads. A file of receipts takes"),
        (b"sku,warehouseId\n", "receipts", "does not name quantity"),
        (b"sku,warehouseId\n", None, "say which it is: warehouses, items, receipts, counts"),
        (HEAD + b'"A,wh_1,1\nB,wh_1,1\n', None, "opened in line 2 is never closed"),
        (HEAD + b'"' + b"A,wh_1,1\n" * 200, None, "opened in line 2 is not closed"),
        (HEAD + b"A" * (LINE_MAX + 1), None, "Line 2 does not end within 64 KB"),
        ("sku,quantity\n".encode("utf-16"), None, "save the file as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_whole(content: bytes, kind: SheetKind | None, why: str) -> None:
    """With a sentence that says what to do."""
    assert why in refusal(content, kind)


def test_json_lines_are_read_too() -> None:
    """Numbers are numbers there; the first line tells the kind."""
    lines = (
        b'{"inventoryItemId":"inv_1","countedQuantity":4}\n\n{"inventoryItemId":"inv_1","countedQuantity":"4"}\n[]\n'
    )

    first, second, third = read(lines, format="jsonl")

    assert first == Row(1, CountRow(inventory_item_id="inv_1", counted_quantity=4))
    assert (second.line, second.fault) == (3, "countedQuantity: Expected `int`, got `str`.")
    assert (third.line, third.fault) == (4, "It is not a JSON object: Expected `object`, got `array`.")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40), st.sampled_from("=+-@'\t"))
def test_what_a_spreadsheet_would_run_is_written_as_text(text: str, head: str) -> None:
    """No cell begins with what begins a formula; reading gives back what was written, whatever it was."""
    values: dict[str, Any] = {"sku": f"{head.strip() or '='}{text}", "warehouseId": "wh_1", "quantity": 1}
    values["sku"] = values["sku"][:128]
    written = write_rows([values], "csv", header=True)

    assert next(csv.reader([written.decode().split("\r\n")[1]]))[0][0] not in "=+-@\t\r"
    (row,) = read(written, "receipts")
    assert row.said == ReceiptRow(sku=values["sku"], warehouse_id="wh_1", quantity=1)
