"""Identifiers: prefixed ULIDs for what we name, UUIDv7 for events (rule R28).

Both sort by time of creation. A ULID rises strictly inside one process, also within one millisecond.
"""

import os
import random
import re
import threading
import time

ID_PATTERN = r"^[a-z]+_[0-9A-Za-z]{1,64}$(?!\n)"
"""What we accept as one of our ids from outside."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Ten bits at a time: a ledger row and a reservation are named for every unit sold.
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_SHIFTS = range(120, -1, -10)
_ID = re.compile(ID_PATTERN)
_lock = threading.Lock()
_last = 0
# Ids have to differ, not to be secret: asking the system for every one of them would be a tenth of what naming costs.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and an upper-case ULID, for example ``inv_01JD…``."""
    global _last  # noqa: PLW0603 - what makes ids rise is one count a process
    now = time.time_ns() // 1_000_000
    with _lock:
        # Same millisecond (or a clock that stepped back): count on, so that order of creation is order of ids.
        _last = now << 80 | _random.getrandbits(80) if now > _last >> 80 else _last + 1
        value = _last
    # 26 characters are 130 bits: two zero bits, then the 128 of the ULID.
    return f"{prefix}_{''.join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])}"


def new_event_id() -> str:
    """Return a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000 << 80) | _random.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_request_id() -> str:
    """Return 16 hexadecimal digits, by which a request is found in the log."""
    return f"{_random.getrandbits(64):016x}"


def is_id(text: str) -> bool:
    """Tell whether ``text`` has the form of one of our ids."""
    return _ID.fullmatch(text) is not None
