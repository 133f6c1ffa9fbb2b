"""The storefront of the real demo in a real browser: a product runs low, sells out and comes back before one's eyes."""

import re
from pathlib import Path

import httpx2
import pytest
from browser import Browser, browsing
from private_server import free_port
from showing import Demo, demo

CARD = "[data-product=prod_01FXYZ789ABC]"


class Shopper:
    """Somebody who looks at the widget's card, and what happens elsewhere meanwhile."""

    def __init__(self, running: Demo, browser: Browser, home: Path) -> None:
        self.url, self.shop = re.findall(r" is at (http://\S+)", running.printed)
        self._demo = running
        self._browser = browser
        self._home = home

    def sees(self, status: str, line: str) -> None:
        """Wait until the card says so."""
        told = f"[...document.querySelectorAll('{CARD} .badge, {CARD} .line')].map(e => e.textContent).join('|')"
        self._browser.wait_for(f"{told}.startsWith({f'{status}|{line}'!r})")

    def is_told(self, text: str) -> None:
        """Wait until the card's notice begins so."""
        self._browser.wait_for(f"document.querySelector('{CARD} .notice').textContent.startsWith({text!r})")

    def wants(self, quantity: int) -> None:
        self._browser.type(f"{CARD} [name=quantity]", str(quantity))

    def buys(self, quantity: int) -> None:
        """By keyboard alone."""
        self.wants(quantity)
        self._browser.press("Enter", 13, "\r")

    def others_reserve(self, quantity: int) -> None:
        line = {"productId": "prod_01FXYZ789ABC", "quantity": quantity}
        self._call("POST", f"{self.url}/reservations", "inventory-operator", {"lines": [line]})

    def shop_is(self, fault: str | None) -> None:
        order = None if fault is None else {"fault": fault}
        method = "DELETE" if fault is None else "PUT"
        self._call(method, f"{self.shop}/misbehaviour", "product-manager", order)

    def _call(self, method: str, url: str, role: str, body: object) -> None:
        name, _, value = (self._home / f"{role}.header").read_text().strip().partition(": ")
        httpx2.request(method, url, headers={name: value}, json=body, timeout=20, trust_env=False).raise_for_status()


@pytest.mark.timeout(300)
def test_a_shopper_sees_it_happen(tmp_path: Path) -> None:
    """In stock, low, limited, out with a date, and back; two orders; a lost event heals; nobody else is asked."""
    with demo(tmp_path, "--port", str(free_port())) as running, browsing(tmp_path) as browser:
        shopper = Shopper(running, browser, tmp_path / ".inventory")
        browser.open(f"{shopper.shop}/")
        browser.wait_for("document.querySelector('.live').textContent.trim() === 'Live'")
        shopper.sees("In Stock", "Ships in 1-2 days")

        shopper.others_reserve(77)
        shopper.sees("Low Stock", "Only 8 left in stock - order soon")
        assert browser.evaluate(f"document.querySelector('{CARD}').classList.contains('changed')")

        shopper.buys(9)
        shopper.is_told("9 of Widget, model 2 cannot be had: only 8 are left. More are expected on ")
        shopper.sees("Limited Availability", "Only 8 available")

        shopper.buys(8)
        shopper.is_told("Thank you: 8 of Widget, model 2. Your order is SO-")
        shopper.sees("Out of Stock", "Expected back in stock ")
        assert browser.evaluate(f"document.querySelector('{CARD} .buy').disabled")

        running.copied("Receive 25 units:")
        shopper.sees("In Stock", "Ships in ")

        shopper.shop_is("deaf")
        shopper.others_reserve(20)
        running.wait_for("25 → 5 available, 5 in all (RESERVATION)")
        shopper.shop_is(None)
        shopper.wants(1)
        shopper.others_reserve(1)
        shopper.sees("Low Stock", "Only 4 left in stock - order soon")

        assert [url for url in browser.asked if not url.startswith(f"{shopper.shop}/")] == []
        assert [told for told in browser.complaints if "409 (Conflict)" not in told] == []
