"""The shop's pages, as text. Whatever somebody has named is escaped; nothing is said in a style or script attribute."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote, urlencode

from msgspec import Struct

from core.reading.availability import DisplayStatus
from entrypoints.demo.goods import StoredProduct
from entrypoints.demo.product_inventory import ShownAvailability

_LABELS: dict[DisplayStatus, str] = {
    "IN_STOCK": "In Stock",
    "LOW_STOCK": "Low Stock",
    "LIMITED_AVAILABILITY": "Limited Availability",
    "OUT_OF_STOCK": "Out of Stock",
}
_PICTURES = {
    "lamp": '<path d="M17 8h14l6 16H11z"/><path d="M24 24v14M16 40h16M31 24v6"/>',
    "kettle": '<path d="M13 40h20l2-16a11 11 0 0 0-22 0z"/><path d="M35 24l6-4M24 13v-3M15 16C15 5 33 5 33 16"/>',
    "chair": '<path d="M15 8v32M15 27h18v13M33 27V24H15M15 8c4 0 6 1 6 4v12"/>',
    "notebook": '<path d="M14 8h22v32H14zM20 8v32M11 14h5M11 21h5M11 28h5M11 35h5M26 16h5"/>',
    "backpack": '<path d="M13 40V22a11 11 0 0 1 22 0v18zM19 12V9a5 5 0 0 1 10 0v3M19 40v-9h10v9M20 23h8"/>',
    "mug": '<path d="M12 14h20v20a6 6 0 0 1-6 6h-8a6 6 0 0 1-6-6zM32 19h3a5 5 0 0 1 0 11h-3M18 9V6M26 9V6"/>',
    "clock": '<circle cx="24" cy="24" r="16"/><path d="M24 14v10l7 5"/>',
    "blanket": '<path d="M9 14h26a4 4 0 0 1 0 8H13a4 4 0 0 0 0 8h26v8H13a8 8 0 0 1-4-2z"/>',
    "tray": '<path d="M6 20h36l-5 14H11zM6 20l-1-4h4M42 20l1-4h-4M17 26h14"/>',
    "vase": '<path d="M18 18c0 5-6 7-6 14a9 9 0 0 0 9 8h6a9 9 0 0 0 9-8c0-7-6-9-6-14M17 18h14M24 18V7M24 12l6-5"/>',
    "box": '<path d="M8 16l16-8 16 8v17l-16 8-16-8zM8 16l16 8 16-8M24 24v17M16 12l16 8"/>',
}
_TONES = 6


class Notice(Struct, frozen=True, kw_only=True):
    """What became of an order."""

    good: bool
    text: str


class Shown(Struct, frozen=True, rename="camel", kw_only=True):
    """Availability in the words of a page."""

    status: DisplayStatus
    label: str
    line: str
    is_available: bool

    @classmethod
    def of(cls, shown: ShownAvailability) -> "Shown":
        """Put it into words."""
        return cls(
            status=shown.display_status,
            label=_LABELS[shown.display_status],
            line=_line(shown),
            is_available=shown.is_available,
        )


def _line(shown: ShownAvailability) -> str:
    if shown.assumed:
        return "We make sure of it when you order"
    match shown.display_status:
        case "IN_STOCK":
            return f"Ships in {shown.lead_time_estimate}" if shown.lead_time_estimate else "Ready to ship"
        case "OUT_OF_STOCK":
            return shown.lead_time_estimate or "Not known yet when it will be back"
        case _:
            return shown.message


def card(
    product: StoredProduct,
    availability: ShownAvailability,
    *,
    order: str,
    quantity: int = 1,
    notice: Notice | None = None,
) -> str:
    """Return a product with its status, and a form to buy it under the number ``order``."""
    shown = Shown.of(availability)
    path = escape(f"/shop/{quote(product.id, safe='')}")
    name = escape(product.name)
    thing = next((word for word in _PICTURES if word in product.name.lower()), "box")
    tone = sum(product.name.split(" ")[0].encode()) % _TONES
    told = "" if notice is None else f"{'good' if notice.good else 'bad'}"
    return f"""<li class="card" data-product="{escape(product.id)}" data-status="{shown.status}">
<a class="picture tone-{tone}" href="{path}" tabindex="-1" aria-hidden="true">
<svg viewBox="0 0 48 48">{_PICTURES[thing]}</svg></a>
<div class="words">
<h2><a href="{path}">{name}</a></h2>
<p class="sku">{escape(product.sku)}</p>
<p class="status"><span class="badge">{shown.label}</span> <span class="line">{escape(shown.line)}</span></p>
</div>
<form method="post" action="{path}/buy">
<input type="hidden" name="order" value="{escape(order)}">
<label>Quantity <input type="number" name="quantity" value="{quantity}" min="1" max="999" required
 inputmode="numeric" aria-label="Quantity of {name}"></label>
<button class="buy" aria-label="Buy {name}"{"" if shown.is_available else " disabled"}>Buy</button>
<button class="check" formmethod="get" formaction="{path}" formnovalidate>Check</button>
</form>
<p class="notice {told}" role="status">{escape(notice.text) if notice else ""}</p>
</li>"""


def shelf(cards: Sequence[str], *, words: str, number: int, last: int, count: int) -> str:
    """Return a page of products."""
    empty = '<p class="empty">Nothing here is called that. Search for something else.</p>' if not cards else ""
    return _page(
        "Common Goods",
        f"""<section class="hero"><h1>Good things, honestly counted.</h1>
<p>What you see is what the warehouses have, this second.</p>
<form class="search" role="search" method="get" action="/">
<input type="search" name="q" value="{escape(words)}" placeholder="Search {"" if words else f"{count} "}products"
 aria-label="Search products"><button>Search</button></form></section>
{empty}<ul class="shelf">{"".join(cards)}</ul>
{_turning(words, number, last)}""",
    )


def _turning(words: str, number: int, last: int) -> str:
    if last == 1:
        return ""

    def link(to: int, text: str, rel: str) -> str:
        query = urlencode({"q": words, "page": to} if words else {"page": to})
        return f'<a rel="{rel}" href="/?{escape(query)}">{text}</a>' if 1 <= to <= last else "<span></span>"

    return (
        f'<nav class="turning" aria-label="Pages">{link(number - 1, "← Back", "prev")}'
        f"<span>Page {number} of {last}</span>{link(number + 1, 'More →', 'next')}</nav>"
    )


def single(product: StoredProduct, card: str) -> str:
    """Return the page of one product."""
    return _page(
        f"{product.name} · Common Goods",
        f"""<p class="back"><a href="/">← All products</a></p>
<h1 class="unseen">{escape(product.name)}</h1><ul class="shelf alone">{card}</ul>""",
    )


def message(title: str, text: str) -> str:
    """Return a page that says something."""
    return _page(
        f"{title} · Common Goods",
        f"""<section class="hero"><h1>{escape(title)}</h1>
<p>{escape(text)}</p><p><a href="/">All products</a></p></section>""",
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/assets/storefront.css">
<script src="/assets/storefront.js" defer></script>
</head>
<body>
<a class="skip" href="#goods">To the products</a>
<header><a class="brand" href="/"><svg viewBox="0 0 48 48" aria-hidden="true">{_PICTURES["box"]}</svg>Common Goods</a>
<p class="live" hidden><span class="dot" aria-hidden="true"></span>
<span class="live-word" role="status">Live</span></p></header>
<main id="goods" tabindex="-1">{body}</main>
<p class="unseen" id="told" aria-live="polite"></p>
<footer>A demonstration shop.
Stock and orders are real to the Inventory Service; nothing is shipped or charged.</footer>
</body>
</html>"""
