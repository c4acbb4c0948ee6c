// The page: asks the receiver each second what is new and shows it.

import { DEVICE, clock, count, draw, joined, make, named, reasonList, span, text, whole } from "./dom.js";
import { showGateways } from "./devices.js";

const PERSON = { 1: "Employee", 2: "Visitor", 3: "Blacklist", 4: "Stranger", 5: "VIP" };
const FACE = "M50 8a24 24 0 0 1 24 24c0 15-10 28-24 28S26 47 26 32A24 24 0 0 1 50 8zM4 104c2-25 20-38 46-38s44 13 46 38z";
const CARDS = 60;

const state = {
  store: "", cursor: 0, // where the receiver and we stand
  turn: 0, // grows with every change of the filters: answers to an earlier question are dropped
  limit: CARDS, // cards on the page
  live: true,
};
const events = new Map(); // id -> event, of the cards on the page
const $ = (id) => document.getElementById(id);

// --- events --------------------------------------------------------------------------------------

// A platform may have been told seconds (timestamp_unit: s); no event is older than 1973.
const happened = (event) => {
  if (typeof event.timestamp !== "number") return null;
  return event.timestamp < 1e11 ? event.timestamp * 1000 : event.timestamp;
};

function photo(event, field, label) {
  const figure = make("figure", "photo");
  if (event.pictures.includes(field)) {
    const image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = label;
    image.src = `/picture/${event.id}/${field}`;
    image.addEventListener("error", () => image.replaceWith(noFace(figure, `${label}: not shown`)));
    figure.append(image, make("figcaption", "", label));
  } else {
    figure.append(noFace(figure, `no ${label}`));
  }
  return figure;
}

function noFace(figure, label) {
  figure.querySelector("figcaption")?.remove();
  figure.classList.add("none");
  figure.append(make("figcaption", "", label));
  return draw("svg", { viewBox: "0 0 100 104", "aria-hidden": "true" }, draw("path", { d: FACE }));
}

function photos(event, tag, className) {
  return make(tag, className,
    photo(event, "spot_pic", "spot picture"), photo(event, "reg_pic", "registered picture"));
}

function personChip(event) {
  const word = named(PERSON, event.person_type);
  return make("span", `chip ${word ? `type-${event.person_type}` : "bad"}`, word || `type ${text(event.person_type)}`);
}

function score(event) {
  return typeof event.score === "number" ? String(Number(event.score.toFixed(3))) : text(event.score);
}

function late(event) {
  const behind = event.received_at - happened(event);
  return happened(event) !== null && behind > 60000 ? `arrived ${span(behind)} later` : "";
}

function repeats(event) {
  if (!event.repeats) return "";
  const other = event.differing ? `, ${event.differing} with another body` : "";
  return `${count(event.repeats, "repeat", "repeats")}${other}`;
}

function card(event) {
  const name = make("bdi", "name", text(event.identity_name) || "(no name)");
  name.title = name.textContent;
  const chips = make("div", "chips", personChip(event));
  if (text(event.group_name)) chips.append(make("bdi", "chip", text(event.group_name)));
  if (event.repeats) chips.append(make("span", event.differing ? "chip bad" : "chip", repeats(event)));
  const article = make("article", event.reasons.length ? "card refused" : "card",
    photos(event, "button", "photos"),
    make("div", "about",
      make("div", "headline", name, make("span", "score", make("small", "", "score "), score(event))),
      chips,
      make("div", "where",
        make("div", "", joined(event.device_ip || event.ep_id, named(DEVICE, event.device_type))),
        make("div", "", joined(happened(event) === null ? text(event.timestamp) : clock(happened(event)), late(event)))),
      reasonList(event.reasons)));
  article.dataset.id = event.id;
  article.addEventListener("click", () => openDetail(event.id));
  return article;
}

function takeEvents(answer, anew) {
  const cards = $("cards");
  if (anew) {
    events.clear();
    cards.replaceChildren();
  }
  for (const event of [...answer.events].reverse()) {
    const old = events.has(event.id) && cards.querySelector(`[data-id="${event.id}"]`);
    const fresh = card(event);
    if (old) old.replaceWith(fresh);
    else if (Number(cards.firstElementChild?.dataset.id) > event.id) continue; // not on the page
    else cards.prepend(fresh);
    events.set(event.id, event);
    fresh.classList.toggle("new", !old && !anew);
  }
  if (anew) $("older").hidden = !answer.more;
  trim();
}

function appendOlder(answer) {
  for (const event of answer.events) {
    if (events.has(event.id)) continue;
    events.set(event.id, event);
    $("cards").append(card(event));
  }
  state.limit = events.size;
  $("older").hidden = !answer.more;
}

function trim() {
  const cards = $("cards");
  while (cards.children.length > state.limit) {
    events.delete(Number(cards.lastElementChild.dataset.id));
    cards.lastElementChild.remove();
    $("older").hidden = false;
  }
  showEmpty();
}

function showEmpty() {
  const filtered = $("words").value || $("person-type").value !== "0" || $("only-refused").checked;
  $("empty").hidden = events.size > 0;
  $("empty-title").textContent = filtered ? "No event matches." : "Waiting for the first event.";
  $("empty-help").hidden = Boolean(filtered);
  $("empty-yaml").textContent = ["history_event", "HistoryEvent", "device_status", "DeviceStatus"]
    .map((part, at) => (at % 2 ? `    - url: ${location.origin}/${part}` : `${part}:\n  endpoints:`)).join("\n");
}

// --- one event, large ----------------------------------------------------------------------------

async function openDetail(id) {
  const event = events.get(id);
  if (!event) return;
  const dialog = $("detail");
  dialog.dataset.id = id;
  $("detail-name").textContent = text(event.identity_name) || "(no name)";
  const fields = make("dl", "fields");
  const body = make("pre");
  const add = (term, value) => {
    if (text(value)) fields.append(make("div", "", make("dt", "", term), make("dd", "", make("bdi", "", text(value)))));
  };
  add("Person", joined(named(PERSON, event.person_type) || `type ${text(event.person_type)}`, event.identity_id));
  add("Group", event.group_name);
  add("Score", score(event));
  add("Happened", happened(event) === null ? event.timestamp : clock(happened(event)));
  add("Received", joined(clock(event.received_at), late(event)));
  add("Device", joined(event.device_ip, named(DEVICE, event.device_type)));
  add("Device id", event.ep_id);
  add("Repeats", repeats(event));
  $("detail-body").replaceChildren(...[photos(event, "div", "large"), reasonList(event.reasons), fields, body].filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  try {
    const details = await (await fetch(`/api/event/${id}`)).json();
    add("Idempotency-Key", details.key);
    body.textContent = details.json;
  } catch {
    body.textContent = "The receiver does not have this event any more.";
  }
}

function step(direction) {
  const here = $("cards").querySelector(`[data-id="${$("detail").dataset.id}"]`);
  const next = direction < 0 ? here?.previousElementSibling : here?.nextElementSibling;
  if (next) openDetail(Number(next.dataset.id));
}

// --- counts --------------------------------------------------------------------------------------

function showCounts(answer) {
  for (const [name, number] of Object.entries(answer.counts)) {
    if ($(name)) $(name).textContent = whole(number);
  }
  $("refused").parentElement.classList.toggle("alarm", answer.counts.refused > 0);
  $("turned-away-stat").hidden = !answer.counts.turned_away;
  $("repeats-note").textContent = answer.counts.differing ? `repeats, ${whole(answer.counts.differing)} differing` : "repeats";
  const recent = answer.rate.slice(-5).reduce((sum, number) => sum + number, 0) / 5;
  $("rate").textContent = recent.toFixed(recent < 10 ? 1 : 0);
  const top = Math.max(1, ...answer.rate);
  const bars = answer.rate.map((number, at) => {
    const height = number ? Math.max(6, (100 * number) / top) : 2;
    return draw("rect", { x: at * 4, y: 100 - height, width: 2.8, height });
  });
  $("rate-plot").replaceChildren(draw("svg", { viewBox: `0 0 ${4 * bars.length} 100`, preserveAspectRatio: "none", "aria-label": "events in each of the last 60 seconds" }, ...bars));
  for (const age of document.querySelectorAll(".age")) {
    age.textContent = `${span(answer.now - Number(age.dataset.at))} ago`;
  }
}

// --- asking the receiver -------------------------------------------------------------------------

async function ask(more) {
  const question = new URLSearchParams({
    words: $("words").value.trim(),
    person_type: $("person-type").value,
    refused: $("only-refused").checked ? "1" : "0",
    ...more,
  });
  const answer = await fetch(`/api/feed?${question}`, { signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function refresh() {
  const turn = state.turn;
  try {
    const answer = await ask({ store: state.store, since: state.cursor });
    if (turn !== state.turn) return;
    const all = !state.cursor || answer.store !== state.store;
    if (answer.gateways) showGateways(answer.gateways);
    showCounts(answer);
    if (answer.events) takeEvents(answer, all || answer.more); // more: a gap, so begin anew
    Object.assign(state, { store: answer.store, cursor: answer.cursor });
    showLive("on");
  } catch {
    showLive("lost");
  }
}

function showLive(how) {
  $("live").className = `live ${state.live ? how : ""}`;
  $("live").textContent = state.live ? { on: "Live", lost: "No answer, trying again" }[how] : "Paused";
  $("live").setAttribute("aria-pressed", String(state.live));
}

async function poll() {
  if (state.live) await refresh();
  setTimeout(poll, 1000);
}

let typing;
function filter(delay) {
  clearTimeout(typing);
  typing = setTimeout(() => {
    Object.assign(state, { turn: state.turn + 1, cursor: 0, limit: CARDS });
    refresh();
  }, delay);
}

$("filters").addEventListener("submit", (submit) => submit.preventDefault());
$("words").addEventListener("input", () => filter(150));
$("person-type").addEventListener("change", () => filter(0));
$("only-refused").addEventListener("change", () => filter(0));
$("older").addEventListener("click", async () => {
  const turn = state.turn;
  const answer = await ask({ before: Math.min(...events.keys()) });
  if (turn === state.turn) appendOlder(answer);
});
$("live").addEventListener("click", () => {
  state.live = !state.live;
  showLive("on");
  if (state.live) refresh();
});
$("close").addEventListener("click", () => $("detail").close());
$("newer-event").addEventListener("click", () => step(-1));
$("older-event").addEventListener("click", () => step(1));
$("detail").addEventListener("click", (click) => {
  if (click.target === $("detail")) $("detail").close(); // the backdrop
});
$("detail").addEventListener("keydown", (press) => {
  if (press.key === "ArrowLeft") step(-1);
  if (press.key === "ArrowRight") step(1);
});
$("devices").open = matchMedia("(min-width: 901px)").matches;
poll();
