// What several views are made of: the head of the page, states, bars, tables, facts.

import { ask, h, icon, tell } from "./dom.js";
import { part, post } from "./api.js";
import { ago, bytes, clipped, cores, count, left, readable, short, words } from "./text.js";
import { changed, failed, isAdmin, look, state } from "./store.js";

const VIEWS = [
  ["", "Overview"],
  ["workers", "Workers"],
  ["sessions", "Sessions"],
  ["queue", "Queue"],
  ["events", "Events"],
];
const SUN = "M12 4V2m0 20v-2m8-8h2M2 12h2m13.7-5.7 1.4-1.4M4.9 19.1l1.4-1.4m0-11.4L4.9 4.9m14.2 14.2-1.4-1.4M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0z";
const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z";
const OUT = "M15 17l5-5-5-5m5 5H9m3 9H5a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1h7";
const THEME = "berth-theme";

export const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

/** As it was chosen here before, if it was. */
export function recallTheme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}

function turn() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem(THEME, next);
  changed();
}

export function themeButton() {
  const dark = isDark();
  return h("button", { class: "plain", "data-test": "theme", "aria-label": dark ? "Light colours" : "Dark colours", title: dark ? "Light" : "Dark", onclick: turn }, icon(dark ? SUN : MOON));
}

export const logo = () => h("img", { class: "logo", src: "/dashboard/icon.svg", alt: "", width: 26, height: 26 });

/** The head of the page. */
export function head(view, signOut) {
  const views = VIEWS.filter(([name]) => name !== "workers" || isAdmin());
  const waiting = state.queue.length;
  const link = ([name, text]) =>
    h("a", { href: `#/${name}`, "aria-current": view === name ? "page" : undefined }, text, name === "queue" && waiting > 0 && h("span", { class: "pill" }, waiting));
  const { info } = state;
  return h(
    "header",
    {},
    h("a", { class: "brand", href: "#/" }, logo(), "Berth"),
    h("nav", { "aria-label": "Views" }, views.map(link)),
    h(
      "div",
      { class: "who" },
      h("span", { class: `live ${state.live ? "on" : ""}`, title: state.live ? "Events come as they happen" : "No events: asked in intervals" }, state.live ? "Live" : "Waiting"),
      h("span", { class: "scope", title: `berth ${info?.version}` }, info?.scope === "client" ? readable(info.tenant) : (info?.scope ?? "")),
      themeButton(),
      h("button", { class: "plain", "aria-label": "Sign out", title: "Sign out", onclick: signOut }, icon(OUT)),
    ),
  );
}

/** Says that nobody answers, for as long as that is so. */
export const banner = () =>
  state.away &&
  h("div", { class: "banner", role: "status", "data-test": "away" }, h("strong", {}, "The coordinator can't be reached. "), `${readable(state.away)}. What is shown is as it was; the page tries again by itself.`);

const KINDS = {
  ready: "good", running: "good", active: "good", alive: "good",
  pending: "warn", placed: "warn", cordoned: "warn", draining: "warn", suspect: "warn", queued: "warn", dispatched: "warn",
  paused: "idle", parked: "idle", ending: "idle", ended: "idle", done: "idle",
  dead: "bad", "not ready": "bad",
};

export const badge = (name, kind) => h("span", { class: `badge ${kind ?? KINDS[name] ?? "idle"}` }, words(name));

/** In a word: what an operator has to know first. */
export function workerState(worker) {
  if (worker.liveness !== "alive") return worker.liveness;
  if (worker.scheduling !== "active") return worker.scheduling;
  return worker.ready ? "ready" : "not ready";
}

export function workerBadge(worker) {
  const drains = worker.scheduling === "draining" && worker.drain_deadline;
  const why = drains ? `${worker.sessions} left, ${left(worker.drain_deadline)}` : worker.ready ? "" : worker.message;
  return [badge(workerState(worker)), why && h("div", { class: "why" }, clipped(why, 160))];
}

const OUTCOMES = { exited: "good", timed_out: "bad", out_of_memory: "bad", signaled: "bad", output_limit: "warn", cancelled: "warn" };

export function taskBadge(task) {
  const { end } = task;
  if (!end) return badge(task.state);
  if (end.outcome === "exited") return badge(`exit ${end.exit_code}`, end.exit_code === 0 ? "good" : "bad");
  return badge(end.outcome === "signaled" ? `signal ${end.signal}` : end.outcome, OUTCOMES[end.outcome] ?? "bad");
}

/** How much of something is taken, with words for those who don't see the bar. */
export function bar(used, of, text, name) {
  const share = of > 0 ? Math.min(1, used / of) : 0;
  const level = share >= 0.95 ? "full" : share >= 0.8 ? "high" : "";
  return h("div", { class: "load" }, h("span", { class: "amount" }, text), h("progress", { class: level, value: share.toFixed(3), max: 1, "aria-label": `${name}: ${text}` }));
}

export const placesBar = (w) => bar(w.sessions, w.max_sessions, `${w.sessions} of ${w.max_sessions}`, "places");
export const cpuBar = (w) => bar(w.reserved.cpu_millis, w.capacity.cpu_millis, `${cores(w.reserved.cpu_millis)} of ${cores(w.capacity.cpu_millis)}`, "CPU");
export const memoryBar = (w) => bar(w.reserved.memory_bytes, w.capacity.memory_bytes, `${bytes(w.reserved.memory_bytes)} of ${bytes(w.capacity.memory_bytes)}`, "memory");
export const diskBar = (w) => bar(w.reserved.disk_bytes, w.capacity.disk_bytes, `${bytes(w.reserved.disk_bytes)} of ${bytes(w.capacity.disk_bytes)}`, "disk");

/** A table; of columns `[name, cell, class]`. On a narrow screen each row is a card, and the names stand in it. */
export function table(label, columns, rows, none, key = (row) => row.id) {
  const known = columns.filter(Boolean);
  if (rows.length === 0) return h("p", { class: "none" }, none);
  const cell = (row) => ([name, show, kind]) => h("td", { class: kind, "data-name": name }, show(row));
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { "aria-label": label },
      h("thead", {}, h("tr", {}, known.map(([name, , kind]) => h("th", { scope: "col", class: kind }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", { key: key(row), "data-row": key(row) }, known.map(cell(row))))),
    ),
  );
}

/** Names and values. */
export const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== undefined && value !== "").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

export const section = (title, ...content) => h("section", { "aria-label": title }, h("h2", {}, title), content);
export const card = (title, value, note, href) =>
  h(href ? "a" : "div", { class: "card", href }, h("span", { class: "title" }, title), h("span", { class: "value" }, value), h("span", { class: "note" }, note));

export const sessionLink = (s) =>
  h("a", { class: "name", href: `#/sessions/${part(s.id)}` }, h("bdi", {}, s.name ? clipped(s.name, 48) : short(s.id)), s.name && h("span", { class: "id" }, short(s.id)));
export const workerLink = (id) => id && (isAdmin() ? h("a", { href: `#/workers/${part(id)}` }, readable(id)) : readable(id));

export const labels = (all) =>
  Object.entries(all ?? {}).map(([name, value]) => h("span", { class: "label" }, h("bdi", {}, clipped(name, 60)), h("b", {}, h("bdi", {}, clipped(value, 120)))));

export const SESSION_COLUMNS = () => [
  ["Session", sessionLink],
  ["State", (s) => [badge(s.state), s.message && s.state !== "ready" && h("div", { class: "why" }, clipped(s.message, 120))]],
  isAdmin() && ["Tenant", (s) => readable(s.tenant)],
  ["Worker", (s) => workerLink(s.worker) || "–"],
  ["Template", (s) => readable(s.template)],
  ["CPU", (s) => cores(s.cpu_millis), "number"],
  ["Memory", (s) => bytes(s.memory_bytes), "number"],
  ["Age", (s) => ago(s.created_at), "number"],
  ["Ends in", (s) => (s.state === "ended" ? "" : left(s.expires_at)), "number"],
];

/** Does what was asked for, and says what came of it. */
export async function act(what, then) {
  try {
    const done = await what();
    await then?.(done);
  } catch (error) {
    if (!failed(error)) tell(error.message, error.hint);
    else if (error.away) tell("That was not done, or nobody knows", error.message);
  }
  changed();
}

const order = (worker, what, body) => act(() => post(`/v1/workers/${part(worker.id)}/${what}`, body), look);

async function cordon(worker) {
  const text = `New sessions go to other workers. What runs on ${worker.id} goes on (${count(worker.sessions, "session")}).`;
  if (await ask({ title: `Cordon ${readable(worker.id)}?`, text, action: "Cordon" })) await order(worker, "cordon");
}

async function drain(worker) {
  const choices = [["600", "10 minutes"], ["3600", "1 hour"], ["60", "1 minute"], ["0", "None: end them now"]];
  const text = `No new sessions go to ${worker.id}. Those there (${worker.sessions}) end by the deadline; those that may be restored go on elsewhere.`;
  const seconds = await ask({ title: `Drain ${readable(worker.id)}?`, text, action: "Drain", danger: true, choices });
  if (seconds !== null) await order(worker, "drain", { deadline_seconds: Number(seconds) });
}

/** For admins. */
export function workerButtons(worker) {
  if (!isAdmin()) return false;
  const button = (name, what) => h("button", { class: "small", "data-test": name.toLowerCase(), "aria-label": `${name} ${readable(worker.id)}`, onclick: () => what(worker) }, name);
  return h(
    "div",
    { class: "row" },
    worker.scheduling === "active" ? button("Cordon", cordon) : button("Uncordon", (w) => order(w, "uncordon")),
    worker.scheduling !== "draining" && button("Drain", drain),
  );
}
