// The views that show many: overview, workers, sessions, queue, events.

import { h } from "./dom.js";
import { SESSION_COLUMNS, badge, bar, card, cpuBar, diskBar, memoryBar, placesBar, section, sessionLink, table, taskBadge, workerBadge, workerButtons, workerLink, workerState } from "./parts.js";
import { MOST_SESSIONS, changed, failed, isAdmin, list, newest, state } from "./store.js";
import { ago, bytes, clipped, clock, cores, count, left, moment, readable, short, words } from "./text.js";
import { part } from "./api.js";

const PAGE = 50;

const sum = (all, of) => all.reduce((total, one) => total + of(one), 0);

export function overview() {
  const { info, workers, queue } = state;
  const alive = workers.filter((w) => w.liveness === "alive");
  const ready = workers.filter((w) => workerState(w) === "ready");
  const s = info.sessions;
  const latest = newest().slice(0, 8);
  const places = sum(alive, (w) => w.max_sessions);
  return [
    h("h1", {}, isAdmin() ? "Fleet" : `Sessions of ${readable(info.tenant)}`),
    h(
      "div",
      { class: "cards" },
      isAdmin() && card("Workers ready", [ready.length, h("small", {}, ` of ${workers.length}`)], unready(workers, ready), "#/workers"),
      !isAdmin() && card("Workers", info.workers_alive, info.workers_alive ? "alive" : "none: sessions wait", undefined),
      card("Sessions ready", s.ready, `${s.parked} parked`, "#/sessions"),
      card("Tasks running", info.active_tasks, "in all sessions"),
      card("Waiting for a place", s.pending, queue[0] ? `first for ${ago(queue[0].waits_since ?? queue[0].created_at)}` : "nobody", "#/queue"),
      isAdmin() && places > 0 && card("Places taken", [sum(alive, (w) => w.sessions), h("small", {}, ` of ${places}`)], "on workers that are alive"),
    ),
    isAdmin() && alive.length > 0 && h("div", { class: "panel meters" }, capacity(alive)),
    isAdmin() && section("Workers", workerTable(workers)),
    queue.length > 0 && section("Queue", queueTable(queue.slice(0, 5))),
    section("Newest sessions", table("Newest sessions", SESSION_COLUMNS(), latest, state.listed ? "No sessions. `berth create` makes one." : "Asking …")),
    section("Latest events", eventTable(state.events.slice(0, 8))),
  ];
}

function unready(workers, ready) {
  const states = workers.filter((w) => !ready.includes(w)).map(workerState);
  const kinds = [...new Set(states)].map((kind) => `${states.filter((one) => one === kind).length} ${kind}`);
  return kinds.join(", ") || (!state.looked ? "…" : workers.length ? "all of them" : "none has come yet");
}

function capacity(alive) {
  const one = (title, used, of, text) => h("div", {}, h("span", { class: "title" }, title), bar(used, of, text, title));
  const [cpu, cpus] = [sum(alive, (w) => w.reserved.cpu_millis), sum(alive, (w) => w.capacity.cpu_millis)];
  const [memory, memories] = [sum(alive, (w) => w.reserved.memory_bytes), sum(alive, (w) => w.capacity.memory_bytes)];
  const [disk, disks] = [sum(alive, (w) => w.reserved.disk_bytes), sum(alive, (w) => w.capacity.disk_bytes)];
  return [
    one("CPU reserved", cpu, cpus, `${cores(cpu)} of ${cores(cpus)} cores`),
    one("Memory reserved", memory, memories, `${bytes(memory)} of ${bytes(memories)}`),
    one("Disk reserved", disk, disks, `${bytes(disk)} of ${bytes(disks)}`),
  ];
}

function workerTable(workers) {
  const columns = [
    ["Worker", (w) => workerLink(w.id)],
    ["State", workerBadge],
    ["Sessions", placesBar],
    ["CPU", cpuBar],
    ["Memory", memoryBar],
    ["Disk", diskBar],
    ["Busy", (w) => (w.load ? `${Math.round(w.load.cpu_busy * 100)} %` : "–"), "number"],
    ["Backend", (w) => readable(w.backend ?? "–")],
    ["Version", (w) => readable(w.version)],
    ["", workerButtons, "end"],
  ];
  return table("Workers", columns, workers, state.looked ? "No workers. `berth token create --scope worker` makes a token for one." : "Asking …");
}

export const workers = () => [h("h1", {}, "Workers"), workerTable(state.workers)];

function queueTable(queue) {
  const columns = [
    ["Place", (s) => s.queue_position ?? "–", "number"],
    ["Session", sessionLink],
    isAdmin() && ["Tenant", (s) => readable(s.tenant)],
    ["Priority", (s) => s.priority, "number"],
    ["Waits since", (s) => ago(s.waits_since ?? s.created_at), "number"],
    ["Gives up in", (s) => left(s.waits_until), "number"],
    ["Wants", (s) => `${cores(s.cpu_millis)} cores, ${bytes(s.memory_bytes)}`],
    ["Waits for", (s) => h("span", { class: "why" }, clipped(s.message.replace(/^waits for (a|another) place: /, ""), 200))],
  ];
  return table("Queue", columns, queue, "Nobody waits for a place.");
}

export const queue = () => [
  h("h1", {}, "Queue"),
  h("p", { class: "lead" }, "Sessions that wait for a place, the next to be tried first."),
  queueTable(state.queue),
];

/** What is looked for among the sessions, and which page of them is shown. */
const wanted = { text: "", state: "", page: 0 };
const STATES = ["pending", "placed", "ready", "paused", "parked", "ending", "ended"];

const fits = (session, text) =>
  [session.id, session.name, session.tenant, session.worker, session.template, ...Object.entries(session.labels).map((pair) => pair.join("="))].some((value) => value?.toLowerCase().includes(text));

export function sessions() {
  const text = wanted.text.trim().toLowerCase();
  const found = newest().filter((s) => (!wanted.state || s.state === wanted.state) && (!text || fits(s, text)));
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  wanted.page = Math.min(wanted.page, pages - 1);
  const shown = found.slice(wanted.page * PAGE, (wanted.page + 1) * PAGE);
  const all = state.sessions.size;
  const told = text || wanted.state ? `${found.length} of ${count(all, "session")}` : count(all, "session");
  return [
    h("h1", {}, "Sessions"),
    filters(),
    h("p", { class: "lead", role: "status", "data-test": "found" }, told, state.more && `: the newest ${MOST_SESSIONS} only; \`berth ps\` lists all`),
    table("Sessions", SESSION_COLUMNS(), shown, state.listed ? "No such session." : "Asking …"),
    pages > 1 && pager(pages),
  ];
}

function want(change) {
  Object.assign(wanted, { page: 0 }, change);
  changed();
}

function filters() {
  const ended = () => {
    state.withEnded = !state.withEnded;
    list().catch(failed);
  };
  return h(
    "form",
    { class: "row filters", role: "search", onsubmit: (event) => event.preventDefault() },
    h("input", { type: "search", id: "search", placeholder: "Name, id, label, worker …", "aria-label": "Search sessions", autocomplete: "off", spellcheck: "false", oninput: (event) => want({ text: event.target.value }) }),
    h(
      "select",
      { id: "state", "aria-label": "State", onchange: (event) => want({ state: event.target.value }) },
      h("option", { value: "", selected: !wanted.state }, "Any state"),
      STATES.map((name) => h("option", { value: name, selected: wanted.state === name }, name)),
    ),
    h("label", {}, h("input", { type: "checkbox", id: "ended", checked: state.withEnded, onchange: ended }), "ended ones too"),
  );
}

/** The search field is made anew with the view: what was looked for stands in it again. */
export function fillFilters(root) {
  const field = root.querySelector("#search");
  if (field && field.value !== wanted.text && document.activeElement !== field) field.value = wanted.text;
}

const pager = (pages) =>
  h(
    "nav",
    { class: "row pager", "aria-label": "Pages" },
    h("button", { disabled: wanted.page === 0, onclick: () => want({ page: wanted.page - 1 }) }, "Newer"),
    h("span", {}, `page ${wanted.page + 1} of ${pages}`),
    h("button", { disabled: wanted.page >= pages - 1, onclick: () => want({ page: wanted.page + 1 }) }, "Older"),
  );

function subject(event) {
  const { session, task, worker } = event;
  if (worker) return workerLink(worker.id);
  if (session) return sessionLink(session);
  return h("a", { href: `#/sessions/${part(task.session)}/tasks/${part(task.id)}` }, short(task.id));
}

function what({ session, task, worker }) {
  if (worker) return [workerBadge(worker), ` ${count(worker.sessions, "session")}`];
  if (session) return [badge(session.state), session.end_reason && ` ${words(session.end_reason)}`, session.worker && session.state === "ready" && [" on ", workerLink(session.worker)]];
  return [taskBadge(task), " ", h("code", {}, h("bdi", {}, clipped(task.command, 90)))];
}

function eventTable(events) {
  const columns = [
    ["Time", (event) => h("time", { datetime: event.at, title: moment(event.at) }, clock(event.at)), "narrow"],
    ["Of", (event) => event.name, "narrow"],
    ["Which", subject],
    ["What", what],
  ];
  return table("Events", columns, events, "Nothing has happened since this page was opened.");
}

const heard = { kind: "" };

export function events() {
  const kinds = isAdmin() ? ["session", "task", "worker"] : ["session", "task"];
  const shown = state.events.filter((event) => !heard.kind || event.name === heard.kind).slice(0, 200);
  const choose = (kind) => () => {
    heard.kind = kind;
    changed();
  };
  const chip = (kind, text) => h("button", { class: "chip", "aria-pressed": String(heard.kind === kind), onclick: choose(kind) }, text);
  return [
    h("h1", {}, "Events"),
    h("div", { class: "row chips" }, chip("", "All"), kinds.map((kind) => chip(kind, `${kind}s`))),
    eventTable(shown),
  ];
}
