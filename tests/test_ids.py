"""Ids: their form, their order, and what passes for one of ours (rule R28)."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from uuid import RFC_4122, UUID

import pytest

from core import ids

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def milliseconds_of(ulid: str) -> int:
    """Read the time out of a ULID as its specification says: the first ten digits."""
    value = 0
    for digit in ulid[:10]:
        value = value * 32 + CROCKFORD.index(digit)
    return value


@pytest.fixture
def fresh_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test move the clock without leaving a trace in other tests' ids."""
    monkeypatch.setattr(ids, "_last", 0)


@pytest.mark.parametrize("prefix", ["inv", "wh", "tx", "res", "exp"])
def test_an_id_is_its_prefix_and_an_upper_case_ulid(prefix: str) -> None:
    """Every id is the prefix, an underscore and 26 of Crockford's digits, the first at most 7 (128 bits)."""
    assert re.fullmatch(f"{prefix}_[0-7][{CROCKFORD}]{{25}}", ids.new_id(prefix))


def test_every_new_id_is_one_we_accept() -> None:
    """What we emit, we take back."""
    assert all(ids.is_id(ids.new_id("inv")) for _ in range(100))


def test_a_ulid_carries_the_time_it_was_made() -> None:
    """The first 48 bits are Unix milliseconds."""
    earliest = time.time_ns() // 1_000_000
    made = milliseconds_of(ids.new_id("tx").removeprefix("tx_"))
    latest = time.time_ns() // 1_000_000

    # Ids made in bursts count on past their millisecond, so the last of them may be a little ahead.
    assert earliest <= made <= latest + 1


def test_a_ulid_spells_its_128_bits_in_full(monkeypatch: pytest.MonkeyPatch, fresh_sequence: None) -> None:
    """A known time and known random bytes give the ULID that the specification's alphabet spells for them."""
    monkeypatch.setattr("core.ids.time.time_ns", lambda: 1_469_922_850_259 * 1_000_000)
    monkeypatch.setattr("core.ids._random", Random(7))
    value = 1_469_922_850_259 << 80 | Random(7).getrandbits(80)
    expected = "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))

    assert f"inv_{expected}" == ids.new_id("inv")
    assert "01ARZ3NDEK" == expected[:10]


def test_ids_rise_within_one_millisecond() -> None:
    """Order of creation is order of ids, however fast they are made."""
    made = [ids.new_id("tx") for _ in range(10_000)]

    assert all(earlier < later for earlier, later in pairwise(made))


def test_ids_rise_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch, fresh_sequence: None) -> None:
    """A clock that is set back does not put new ids before old ones."""
    monkeypatch.setattr("core.ids.time.time_ns", lambda: 2_000_000_000_000_000_000)
    before = ids.new_id("tx")
    monkeypatch.setattr("core.ids.time.time_ns", lambda: 1_000_000_000_000_000_000)

    assert before < ids.new_id("tx")


def test_threads_never_share_an_id() -> None:
    """Ids made by several threads at once are all different."""
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: ids.new_id("tx"), range(4_000)))

    assert 4_000 == len(set(made))


def test_an_event_id_is_a_uuid_of_version_7() -> None:
    """Event ids parse as RFC 9562 UUIDs of version 7 in their canonical spelling."""
    text = ids.new_event_id()
    parsed = UUID(text)

    assert (str(parsed), parsed.version, parsed.variant) == (text, 7, RFC_4122)


def test_an_event_id_carries_the_time_it_was_made() -> None:
    """The first 48 bits of an event id are Unix milliseconds."""
    earliest = time.time_ns() // 1_000_000
    made = UUID(ids.new_event_id()).int >> 80

    assert earliest <= made <= time.time_ns() // 1_000_000


def test_event_ids_differ_within_one_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """74 random bits keep event ids apart where the time does not."""
    monkeypatch.setattr("core.ids.time.time_ns", lambda: 1_800_000_000_000_000_000)

    assert 10_000 == len({ids.new_event_id() for _ in range(10_000)})


@pytest.mark.parametrize(
    "text",
    ["inv_01GXYZ234DEF", "wh_1", "prod_abcXYZ", "x_" + "0" * 64, "tx_01KXYZ678KLM"],
)
def test_ids_of_this_form_are_accepted(text: str) -> None:
    """A lower-case prefix and 1 to 64 letters or digits are an id, ULID or not."""
    assert ids.is_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inv",
        "inv_",
        "_01GXYZ",
        "INV_01GXYZ",
        "inv-01GXYZ",
        "inv_01_02",
        "inv_" + "0" * 65,
        "inv_01\n",
        "inv_01\x00",
        " inv_01",
        "inv_01 ",
        "inv_é",
        "inv_١",
        "ïnv_01",
        "inv_01/../x",
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    """Other prefixes, signs, lengths, scripts and a trailing newline are refused."""
    assert not ids.is_id(text)
