"""Files on their way into the stock: the part of the store that keeps them, and how far each has come."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from core.acts import Act
from core.fields import Word
from ports.leases import Lease

SheetKind = Literal["warehouses", "items", "receipts", "counts"]
Format = Literal["csv", "jsonl"]

ImportStatus = Literal["UPLOADING", "QUEUED", "CHECKING", "IMPORTING", "DONE", "REFUSED", "CANCELLED"]
PART_BYTES = 256 * 1024
"""How much of a file is stored and read at a time."""


class ImportOrder(Struct, frozen=True, rename="camel", kw_only=True):
    """What to do with a file.

    ``kind`` may be left to the file's columns. A ``dry_run`` looks at every row and changes nothing. Where some rows
    are not valid, nothing of the file is imported, unless ``partial`` asks for the others. ``again`` imports a file
    that was imported before.
    """

    kind: SheetKind | None = None
    format: Format = "csv"
    name: Word | None = None
    dry_run: bool = False
    partial: bool = False
    again: bool = False


class Import(Struct, frozen=True, rename="camel", kw_only=True):
    """A file and how far it is: of ``rows`` so many were ``checked``, then so many are ``done``, ``refused`` included.

    ``digest`` is the SHA-256 of its content; ``reason`` tells why all of it was refused where no row is to blame.
    """

    id: str
    status: ImportStatus
    kind: SheetKind | None
    format: Format
    name: str | None
    dry_run: bool
    partial: bool
    actor: str
    digest: str | None
    bytes: int
    rows: int | None
    checked: int
    done: int
    refused: int
    reason: str | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def succeeded(self) -> int:
        """Rows that were carried out."""
        return max(self.done - self.refused, 0)


class RowError(Struct, frozen=True):
    """Why a row was not imported, or would not be; ``line`` is where it begins in the file."""

    line: int
    code: str
    detail: str


class ImportStore(Protocol):
    """Where imports are kept. What takes a lease does nothing once that is another's (fencing)."""

    async def begin_import(self, order: ImportOrder, act: Act) -> Import:
        """Put an import on record; its content is to follow."""
        ...

    async def add_part(self, id: str, number: int, body: bytes) -> None:
        """Add the next part of the content, ``number`` counting from 0."""
        ...

    async def finish_upload(self, id: str, *, digest: str, size: int, again: bool) -> Import:
        """Queue an import whose content is complete.

        Returns the earlier import of the same content instead, and forgets this one, unless it is a dry run or
        ``again`` is asked for; what was refused or cancelled does not count.
        """
        ...

    async def abandon_upload(self, id: str) -> None:
        """Forget an import whose content did not come to its end; one that was queued stays."""
        ...

    async def import_part(self, id: str, number: int) -> bytes | None:
        """Return a part of the content, None after the last."""
        ...

    async def open_import(self) -> Import | None:
        """Return the oldest import that is queued or begun."""
        ...

    async def save_import(self, lease: Lease, job: Import, errors: Sequence[RowError] = ()) -> Import | None:
        """Record how far an import is and further errors of its rows; return it as it stands.

        One that has checked nothing (yet, or anew) has no errors but these. With an ending status its content is
        dropped. Returns None, having done nothing, when it has been ended meanwhile or ``lease`` is no longer ours.
        """
        ...

    async def cancel_import(self, id: str, act: Act) -> Import:
        """End an import; what is done stays done.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended.
        """
        ...

    async def import_job(self, id: str) -> Import | None:
        """Return an import as it stands."""
        ...

    async def import_jobs(self, *, before: str | None = None, limit: int) -> list[Import]:
        """Return imports, newest first, after the one called ``before``."""
        ...

    async def import_errors(self, id: str, *, after: int = 0, limit: int) -> list[RowError]:
        """Return why rows of an import were refused, by line, after that of ``after``."""
        ...
