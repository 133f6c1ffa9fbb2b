"""What an adapter's error tells an operator: what is wrong with a store or a broker, and the one thing to do.

It goes by SQLSTATE, by the standard library's error types, and by words, never by a driver's classes: a stranger's
adapter is understood as well as ours.
"""

import re
from pathlib import Path

from adapters.telemetry import mask

_REASONS = (
    (r"\b28P01\b|ACCESS_REFUSED", "refuses the user or the password", "Correct user and password in {}."),
    (r"\b28000\b", "does not let this user in", "Correct the user in {}, or let it in on the server."),
    (r"refuses our token", "refuses our token", "Compare {}_SECRET or {}_KEY, and {}_AUDIENCE, with what it expects."),
    (r"redirects, which", "redirects, which is not followed", "Put the address it redirects to into {}."),
    (r"not the form that was agreed", "answers what no Product Service does", "Correct {}."),
    (r"status \d{3}", "does not say that it is well", "See its log, or correct {}_HEALTH_PATH."),
    (r"\b3D000\b", "has no database of that name", "Create it, or correct the name at the end of {}."),
    (r"virtual host", "has no such virtual host for this user", "Create it, or correct the end of {}."),
    (r"\b42501\b", "does not give this user the rights it needs", "Make the user of {} the owner of the tables."),
    (r"\b53300\b", "has no connection left", "Allow more on the server, or stop what holds them."),
    (r"\b57P0\d\b", "is starting or stopping", "Try again when it has started."),
    (r"memory or disk alarm", "takes nothing while its memory or disk alarm lasts", "Give it memory or disk space."),
    (r"gaierror|Errno -\d", "is not found: nobody knows that host name", "Correct the host in {}."),
    (r"SSL", "does not agree on TLS", "Correct how {} asks for TLS."),
    (
        r"ConnectionRefused|ConnectError|Errno (111|61)\b",
        "refuses connections",
        "Start it, or correct host and port in {}.",
    ),
    (r"TimeoutError|no answer", "does not answer in time", "See that it runs and can be reached, or correct {}."),
)
"""What an error's type, SQLSTATE or text tells, and what to do then; ``{}`` is the setting. The first that fits."""
_NAMES = {"catalog": "Product Service", "auth_jwks": "key set"}
"""What a port is called where it is not called as it is."""


def explain(port: str, url: str, error: BaseException) -> tuple[str, str]:
    """Return a sentence that says what is wrong, and one that says what to do."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    signs = " ".join(f"{type(each).__name__} {getattr(each, 'sqlstate', '')} {each}" for each in causes)
    said = next(iter(str(causes[-1]).splitlines()), "") or type(causes[-1]).__name__
    unknown = ("", f"cannot be used: {said.rstrip('.')}", "Put that right, or correct {}.")
    _, wrong, remedy = next((reason for reason in _REASONS if re.search(reason[0], signs)), unknown)
    setting = f"INVENTORY_{port.upper()}"
    return f"The {_NAMES.get(port, port)} at {where(url)} {wrong}.", remedy.replace("{}", setting)


def where(url: str) -> str:
    """Return the URL without what may be secret. It is masked before it is taken apart: a password may hold an @."""
    if file := sqlite_file(url):
        return str(file)
    return mask(url).partition("://")[2].rpartition("@")[2].partition("?")[0].rstrip("/")


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database that outlives the process."""
    path = url.partition(":///")[2].partition("?")[0]
    return Path(path) if url.startswith("sqlite") and path not in ("", ":memory:") else None
