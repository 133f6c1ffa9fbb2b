"""The list of 45 bad inputs (the project's research on reliability), and that each of them has its test.

A test of one bears its number, in its name (``test_33_…``) or in its parameter's (``33 …``, ``33-…``).
"""

import re

import pytest
import test_api
import test_bad_bytes
import test_bad_requests
import test_consumption
import test_tokens

LIST = {
    1: "alg none",
    2: "alg nOnE",
    3: "empty signature",
    4: "HS256 by a public key's PEM",
    5: "HS256 by a public key's JWK",
    6: "ES256 signature (0, 0)",
    7: "embedded jwk",
    8: "jku to us",
    9: "x5u",
    10: "kid traversal",
    11: "kid SQL",
    12: "kid of 10 KB",
    13: "crit",
    14: "wrong typ",
    15: "no exp",
    16: "exp as a string",
    17: "exp in 10 years",
    18: "exp 31 seconds ago",
    19: "nbf in 31 seconds",
    20: "aud missing, array, other, case",
    21: "iss with slash, array",
    22: "retired key",
    23: "sibling service's token",
    24: "roles as string, nested, duplicate key",
    25: "padded signature",
    26: "two Authorization headers",
    27: "bearer without token",
    28: "1 MB header",
    29: "NUL, overlong UTF-8, right to left, lone surrogates in ids",
    30: "traversal and semicolon in a path",
    31: "quantities that are none",
    32: "too large, chunked without length, lying length",
    33: "slow-loris",
    34: "deep, duplicate, trailing, huge JSON",
    35: "unknown and read-only fields",
    36: "wrong and multiple Content-Type, gzip bomb",
    37: "method override, TRACE",
    38: "metacharacters in a search",
    39: "idempotency key reuse",
    40: "cross-site POST",
    41: "eventId missing, duplicate, foreign; eventType against routing key",
    42: "eventVersion 2.0.0, x, missing",
    43: "timestamp of 1970, 2099, not UTC",
    44: "negative quantities, SKU of 10 KB, HTML in a name",
    45: "body empty, no JSON, gzip, 16 MB, invalid UTF-8; forged headers",
}
MODULES = (test_api, test_bad_bytes, test_bad_requests, test_consumption, test_tokens)
IDS = [
    *(bad.number for bad in test_bad_requests.BAD),
    *(
        name
        for table in (test_tokens.BAD, test_bad_bytes.BAD, test_consumption.BAD, test_consumption.ODD)
        for name in table
    ),
    *(name.removeprefix("test_") for module in MODULES for name in vars(module) if re.match(r"test_\d", name)),
]


def _numbers(id: str) -> list[int]:
    """Return the numbers that an id begins with."""
    (first,) = re.findall(r"^[\d_]*", id)
    return [int(number) for number in re.findall(r"\d+", first)]


@pytest.mark.parametrize("number", LIST, ids=lambda number: f"{number} {LIST[number]}")
def test_each_has_its_test(number: int) -> None:
    """At least one test is about it."""
    assert [id for id in IDS if number in _numbers(id)]
