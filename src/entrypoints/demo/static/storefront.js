// Keeps the page as true as the warehouse: asks again when it is told of a change, and orders without leaving.
"use strict";

const cards = new Map([...document.querySelectorAll("[data-product]")].map((card) => [card.dataset.product, card]));
const live = document.querySelector(".live");
const told = document.querySelector("#told");
let stream = null;

const path = (card) => card.querySelector("h2 a").pathname;

async function check(card) {
  const quantity = card.querySelector("[name=quantity]");
  if (!quantity.checkValidity()) return;
  const turn = (card.turn = (card.turn ?? 0) + 1);
  const answer = await fetch(`${path(card)}/availability?quantity=${quantity.valueAsNumber}`).catch(() => null);
  if (answer?.ok) {
    const shown = await answer.json();
    if (turn === card.turn) show(card, shown); // else a later question is on its way
  }
}

function show(card, shown) {
  const badge = card.querySelector(".badge"), line = card.querySelector(".line");
  card.querySelector(".buy").disabled = !shown.isAvailable;
  if (badge.textContent === shown.label && line.textContent === shown.line) return;
  badge.textContent = shown.label;
  line.textContent = shown.line;
  card.dataset.status = shown.status;
  card.classList.remove("changed");
  void card.offsetWidth; // so that the highlight begins anew
  card.classList.add("changed");
  told.textContent = `${card.querySelector("h2").textContent}: ${shown.label}. ${shown.line}`;
}

function say(connected) {
  live.hidden = false;
  live.classList.toggle("away", !connected);
  live.querySelector(".live-word").textContent = connected ? "Live" : "Reconnecting…";
}

function follow() {
  if (stream || cards.size === 0 || document.hidden) return;
  stream = new EventSource(`/live?${new URLSearchParams([...cards.keys()].map((id) => ["product", id]))}`);
  // Whatever was missed while nobody listened is seen now.
  stream.addEventListener("open", () => { say(true); cards.forEach((card) => check(card)); });
  stream.addEventListener("error", () => say(false));
  stream.addEventListener("changed", (event) => check(cards.get(JSON.parse(event.data))));
}

function rest() {
  stream?.close();
  stream = null;
}

function answer(card, good, text) {
  const notice = card.querySelector(".notice");
  notice.className = `notice ${good ? "good" : "bad"}`;
  notice.textContent = text;
}

async function buy(card, form) {
  const button = form.querySelector(".buy");
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    const body = new URLSearchParams(new FormData(form));
    const reply = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
    const result = await reply.json();
    form.elements.order.value = result.nextOrder;
    answer(card, result.success, result.message);
  } catch {
    answer(card, false, "The shop does not answer. Press Buy again: it will be one order all the same.");
  } finally {
    button.removeAttribute("aria-busy");
  }
  check(card);
}

for (const card of cards.values()) {
  const form = card.querySelector("form");
  form.addEventListener("submit", (event) => {
    if (event.submitter?.classList.contains("check")) return;
    event.preventDefault();
    buy(card, form);
  });
  form.elements.quantity.addEventListener("input", () => check(card));
}
document.documentElement.classList.add("live-page");
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : follow()));
addEventListener("pagehide", rest);
addEventListener("pageshow", follow);
