"use strict";
// Decisions of earlier rounds come with the page; those made here lie in localStorage, under their request.
const before = JSON.parse(document.getElementById("decisions").textContent);
const cards = [...document.querySelectorAll("article[data-request]")];
const made = {}; // request -> "accepted", "rejected", or "" for an earlier decision taken back
const KEY = "vlaad_ray decision ";

function forgets() {
  document.getElementById("unkept").hidden = false;
}

function decision(request) {
  return made[request] ?? before[request] ?? "";
}

function decide(card, value) {
  const request = card.dataset.request;
  made[request] = decision(request) === value ? "" : value;
  try {
    localStorage.setItem(KEY + request, made[request]);
  } catch {
    forgets();
  }
  show();
}

function show() {
  for (const card of cards) {
    card.dataset.decision = decision(card.dataset.request);
    for (const button of card.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.value === card.dataset.decision);
    }
  }
  const sampled = cards.filter((card) => card.dataset.sampled === "1");
  document.getElementById("counts").textContent = `${counts(cards)}; of the random sample: ${counts(sampled)}`;
}

function counts(some) {
  const number = (value) => some.filter((card) => card.dataset.decision === value).length;
  return `${number("accepted")} accepted, ${number("rejected")} rejected, ${number("")} open`;
}

function exported() {
  const all = Object.entries({ ...before, ...made }).filter(([, value]) => value);
  return JSON.stringify(Object.fromEntries(all.sort()), null, 2) + "\n";
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

function go(by) {
  const here = cards.indexOf(document.activeElement.closest("article"));
  const to = cards[here < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, here + by))];
  to?.focus({ preventScroll: true });
  to?.scrollIntoView();
}

try {
  for (const { dataset } of cards) {
    const value = localStorage.getItem(KEY + dataset.request);
    if (value !== null) made[dataset.request] = value;
  }
} catch {
  forgets();
}
document.getElementById("export").addEventListener("click", download);
document.addEventListener("click", (event) => {
  const button = event.target.closest("article button");
  if (button) decide(button.closest("article"), button.value);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own, such as reloading
  if (event.key === "j") go(1);
  if (event.key === "k") go(-1);
  const card = document.activeElement.closest("article");
  if (card && event.key === "a") decide(card, "accepted");
  if (card && event.key === "r") decide(card, "rejected");
});
show();
