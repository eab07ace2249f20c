// The views of one: a worker, a session, a task. What they show beside what the store knows they ask for themselves, for as
// long as they are shown.

import { Failed, content, get, part, post, remove } from "./api.js";
import { ask, h, tell } from "./dom.js";
import { SESSION_COLUMNS, act, badge, bar, cpuBar, diskBar, facts, labels, memoryBar, placesBar, section, table, taskBadge, workerBadge, workerButtons, workerLink } from "./parts.js";
import { Viewer } from "./output.js";
import { changed, failed, newest, onEvent, state, take } from "./store.js";
import { ago, bytes, clipped, cores, count, left, moment, readable, short, span, words } from "./text.js";

const EVERY = 4000;
/** More is fetched with the command line. */
const LARGEST_DOWNLOAD = 64 << 20;
/** Rows of tasks that are shown. */
const MOST_TASKS = 100;

/** What is shown now, and what was asked for it. */
let shown = null;

/** Ends what the last view had under way, and begins what this one needs. */
export function enter(view, ids) {
  leave();
  if (view !== "session" && view !== "task") return;
  const [session, task] = ids;
  shown = { session, task, tasks: null, usage: null, artifacts: [], info: null, gone: null, viewer: null };
  const mine = shown;
  mine.forget = onEvent((name, data) => {
    if (mine !== shown || !mine.info) return;
    if (name === "session" && data.session.id === mine.info.id) mine.info = data.session;
    if (name !== "task" || data.task.session !== mine.info.id) return;
    mine.tasks = [data.task, ...(mine.tasks ?? []).filter((known) => known.id !== data.task.id)].sort((a, b) => (a.id < b.id ? 1 : -1));
  });
  if (task) mine.viewer = new Viewer(session, task);
  refresh(mine);
  mine.timer = setInterval(() => document.visibilityState === "visible" && refresh(mine), EVERY);
}

export function leave() {
  clearInterval(shown?.timer);
  shown?.forget?.();
  shown?.viewer?.close();
  shown = null;
}

async function refresh(mine) {
  const path = `/v1/sessions/${part(mine.session)}`;
  try {
    mine.info = await get(path);
    const live = ["ready", "paused"].includes(mine.info.state);
    const perhaps = (promise) => promise.catch((error) => (error instanceof Failed && !error.away ? null : Promise.reject(error)));
    const [tasks, usage, artifacts] = await Promise.all([
      live ? perhaps(get(`${path}/tasks`)) : null,
      live ? perhaps(get(`${path}/usage`)) : null,
      mine.task ? null : perhaps(get(`/v1/artifacts?limit=50&session=${part(mine.info.id)}`)),
    ]);
    // A session that has ended tells no more of its tasks than what was seen.
    Object.assign(mine, { tasks: tasks?.tasks ?? mine.tasks ?? [], usage, artifacts: artifacts?.artifacts ?? [], gone: null });
  } catch (error) {
    if (!failed(error)) mine.gone = error.message;
  }
  if (mine === shown) changed();
}

const notThere = (what, why) => [h("h1", {}, `No such ${what}`), h("p", { class: "none" }, why)];
const crumbs = (...links) => h("nav", { class: "crumbs", "aria-label": "Where this is" }, links.map(([text, href]) => h("a", { href }, text)));

export function worker([id]) {
  const found = state.workers.find((one) => one.id === id);
  if (!found) return notThere("worker", "It is not in the fleet, or was not told of yet.");
  const { load } = found;
  const sessions = newest().filter((session) => session.worker === id);
  const pressure = (value) => (value === undefined ? undefined : `${value.toFixed(1)} %`);
  return [
    crumbs(["Workers", "#/workers"]),
    h("div", { class: "top" }, h("h1", {}, h("bdi", {}, readable(id))), h("div", { class: "state" }, workerBadge(found)), h("span", { class: "space" }), workerButtons(found)),
    h("div", { class: "panel meters" }, [["Places", placesBar], ["CPU reserved", cpuBar], ["Memory reserved", memoryBar], ["Disk reserved", diskBar]].map(([title, one]) => h("div", {}, h("span", { class: "title" }, title), one(found)))),
    facts([
      ["Scheduling", found.scheduling],
      ["Liveness", found.liveness],
      ["Backend", readable(found.backend ?? "–")],
      ["Version", readable(found.version)],
      ["CPU busy", load && `${Math.round(load.cpu_busy * 100)} %`],
      ["Memory free", load && bytes(load.memory_available_bytes)],
      ["Disk free", load && bytes(load.disk_free_bytes)],
      ["CPU pressure", pressure(load?.cpu_pressure)],
      ["Memory pressure", pressure(load?.memory_pressure)],
      ["I/O pressure", pressure(load?.io_pressure)],
      ["Attached", `${ago(found.attached_at)} ago`],
      ["Heartbeat", `${ago(found.last_heartbeat_at)} ago`],
      ["Drained in", found.drain_deadline && left(found.drain_deadline)],
      ["Templates", readable(found.templates.join(", "))],
      ["Labels", Object.keys(found.labels).length ? labels(found.labels) : ""],
    ]),
    section(count(sessions.length, "session"), table("Sessions", SESSION_COLUMNS().filter((column) => column && column[0] !== "Worker"), sessions.slice(0, 100), "No sessions here.")),
  ];
}

async function endSession(info) {
  const text = `All that runs in ${info.name ? clipped(info.name, 60) : short(info.id)} is ended, and its files are removed. Artifacts and checkpoints stay.`;
  if (!(await ask({ title: "End this session?", text, action: "End session", danger: true }))) return;
  await act(
    () => remove(`/v1/sessions/${part(info.id)}`),
    (ended) => {
      if (shown) shown.info = ended;
      take(ended);
      tell("The session is ended.", "", "good");
    },
  );
}

function sessionHead(info) {
  const over = info.state === "ended" || info.state === "ending";
  return h(
    "div",
    { class: "top" },
    h("h1", {}, h("bdi", {}, info.name ? clipped(info.name, 80) : short(info.id))),
    h("div", { class: "state" }, badge(info.state), info.end_reason && h("span", { class: "why" }, words(info.end_reason))),
    h("span", { class: "space" }),
    !over && h("button", { class: "danger", "data-test": "end", onclick: () => endSession(info) }, "End session"),
  );
}

function usageBars(usage, info) {
  const meter = (title, used, of, text) => h("div", {}, h("span", { class: "title" }, title), used === undefined ? "–" : bar(used, of ?? 0, of ? `${text(used)} of ${text(of)}` : text(used), title));
  const cpu = usage.cpu_seconds === undefined ? "–" : `${span(usage.cpu_seconds)} used, at most ${count(Number(cores(usage.cpu_limit_millis ?? info.cpu_millis)), "core")}`;
  return h(
    "div",
    { class: "panel meters" },
    meter("Memory", usage.memory_bytes, usage.memory_limit_bytes, bytes),
    meter("Disk", usage.disk_bytes, usage.disk_limit_bytes, bytes),
    meter("Processes", usage.pids, usage.pids_limit, String),
    h("div", {}, h("span", { class: "title" }, "CPU time"), h("div", { class: "load" }, h("span", { class: "amount" }, cpu))),
  );
}

const TASK_COLUMNS = (session) => [
  ["Task", (t) => h("a", { class: "name", href: `#/sessions/${part(session)}/tasks/${part(t.id)}` }, short(t.id))],
  ["State", taskBadge],
  ["Command", (t) => h("code", {}, h("bdi", {}, clipped(t.command, 160)))],
  ["Started", (t) => (t.started_at ? `${ago(t.started_at)} ago` : "–"), "number"],
  ["Took", (t) => (t.end ? span(t.end.duration_seconds) : "–"), "number"],
  ["Output", (t) => bytes(t.stdout_bytes + t.stderr_bytes), "number"],
];

async function download(artifact) {
  if (artifact.size > LARGEST_DOWNLOAD) {
    tell("That is too large for a page to fetch.", `berth artifact get ${artifact.id}`);
    return;
  }
  await act(async () => {
    const url = URL.createObjectURL(await content(`/v1/artifacts/${part(artifact.id)}/content`));
    const name = artifact.name.split("/").pop();
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  });
}

const ARTIFACT_COLUMNS = [
  ["Name", (a) => h("bdi", {}, clipped(a.name, 120))],
  ["Size", (a) => bytes(a.size), "number"],
  ["Type", (a) => readable(a.media_type)],
  ["Kept for", (a) => left(a.expires_at), "number"],
  ["", (a) => h("button", { class: "small", "aria-label": `Save ${readable(a.name)}`, onclick: () => download(a) }, "Save"), "end"],
];

export function session([id]) {
  const info = shown?.info ?? state.sessions.get(id);
  if (!info) return shown?.gone ? notThere("session", readable(shown.gone)) : h("p", { class: "none" }, "Asking …");
  const { tasks, usage, artifacts } = shown;
  const reach = [words(info.egress), ...info.allow.map(readable)].join(", ");
  return [
    crumbs(["Sessions", "#/sessions"]),
    sessionHead(info),
    info.message && h("p", { class: "lead" }, clipped(info.message, 400)),
    usage && usageBars(usage, info),
    section(
      "Tasks",
      table("Tasks", TASK_COLUMNS(info.id), (tasks ?? []).slice(0, MOST_TASKS), tasks ? "No tasks are known." : "Asking …"),
      tasks?.length > MOST_TASKS && h("p", { class: "note" }, `${tasks.length - MOST_TASKS} older ones are not shown.`),
    ),
    artifacts.length > 0 && section("Artifacts", table("Artifacts", ARTIFACT_COLUMNS, artifacts, "")),
    section(
      "Details",
      facts([
        ["Id", h("code", {}, info.id)],
        ["Tenant", readable(info.tenant)],
        ["Worker", workerLink(info.worker)],
        ["Backend", readable(info.backend)],
        ["Template", readable(info.template)],
        ["CPU", count(Number(cores(info.cpu_millis)), "core")],
        ["Memory", bytes(info.memory_bytes)],
        ["Disk", bytes(info.disk_bytes)],
        ["Processes", info.pids],
        ["Reaches", reach],
        ["Priority", info.priority],
        ["Created", moment(info.created_at)],
        ["Ready since", info.ready_at && moment(info.ready_at)],
        ["Ended", info.ended_at && moment(info.ended_at)],
        ["Ends in", info.state === "ended" ? undefined : left(info.expires_at)],
        ["When idle for", info.idle_timeout_seconds && span(info.idle_timeout_seconds)],
        ["Labels", Object.keys(info.labels).length ? labels(info.labels) : ""],
      ]),
    ),
  ];
}

async function cancel(task) {
  const text = "The program is told to end, and 2 seconds later all that it started is killed.";
  if (!(await ask({ title: "Cancel this task?", text, action: "Cancel task", danger: true }))) return;
  await act(
    () => post(`/v1/sessions/${part(task.session)}/tasks/${part(task.id)}/cancel`),
    () => shown && refresh(shown),
  );
}

export function task([of, id]) {
  const { info, tasks, viewer, gone } = shown;
  const found = tasks?.find((one) => one.id === id);
  const name = info?.name ? clipped(info.name, 48) : short(info?.id ?? of);
  const missing = gone ?? (tasks ? "Its session does not know it any more." : "Asking …");
  return [
    crumbs(["Sessions", "#/sessions"], [h("bdi", {}, name), `#/sessions/${part(of)}`]),
    found
      ? [
          h(
            "div",
            { class: "top" },
            h("h1", {}, `Task ${short(id)}`),
            h("div", { class: "state" }, taskBadge(found)),
            h("span", { class: "space" }),
            !found.end && h("button", { class: "danger", "data-test": "cancel", onclick: () => cancel(found) }, "Cancel task"),
          ),
          h("pre", { class: "command" }, h("bdi", {}, readable(found.command).slice(0, 4000))),
          facts([
            ["Started", found.started_at && moment(found.started_at)],
            ["Took", found.end && span(found.end.duration_seconds)],
            ["Peak memory", found.end?.peak_memory_bytes ? bytes(found.end.peak_memory_bytes) : undefined],
            ["Standard output", found.end && bytes(found.stdout_bytes)],
            ["Standard error", found.end && bytes(found.stderr_bytes)],
            ["Why", found.end?.message ? clipped(found.end.message, 400) : undefined],
          ]),
        ]
      : [h("h1", {}, `Task ${short(id)}`), h("p", { class: "none" }, readable(missing))],
    h("div", { class: "output", opaque: true, key: viewer.key }),
  ];
}

/** Puts what lives on its own, a task's output, into the place that its view has for it. */
export function mount(root) {
  const slot = root.querySelector(".output");
  if (slot && shown?.viewer && slot !== shown.viewer.element) slot.replaceWith(shown.viewer.element);
}
