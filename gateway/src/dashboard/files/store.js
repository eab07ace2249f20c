// What is known of the cluster, and how it is kept up to date.
//
// Two loops. One asks in intervals for what has no events of its own (load, counts, the queue), and slower and slower while
// nobody answers. The other follows the events: whenever it has begun anew it lists the sessions first, so that nothing is
// missed between. A page that nobody looks at holds no stream and asks for nothing: browsers have few connections.

import { Failed, follow, get, sleep, token } from "./api.js";

const EVERY = 3000;
const LONGEST_WAIT = 8000;
const KEPT_EVENTS = 500;
export const MOST_SESSIONS = 1000;

export const state = {
  signedIn: false,
  /** Why there is no sign-in any more. */
  refused: "",
  info: null,
  workers: [],
  sessions: new Map(),
  more: false,
  withEnded: false,
  listed: false,
  /** Whether the workers and the queue were told. */
  looked: false,
  queue: [],
  events: [],
  /** Why nobody answers, if so. */
  away: null,
  live: false,
};

const listeners = new Set();
const watchers = new Set();
let round = 0;
let stop = new AbortController();

/** `then` is called when something has changed, soon and not too often. */
export const onChange = (then) => listeners.add(then);
/** `then(name, data)` is called for each event; the answer ends that. */
export function onEvent(then) {
  watchers.add(then);
  return () => watchers.delete(then);
}

let due = false;
export function changed() {
  if (due) return;
  due = true;
  setTimeout(() => {
    due = false;
    for (const then of listeners) then();
  }, 60);
}

export const isAdmin = () => state.info?.scope === "admin";

/** Tries the token that is there. Fails with why it is no good. */
export async function begin() {
  state.info = await get("/v1/info");
  Object.assign(state, { signedIn: true, refused: "", away: null, workers: [], sessions: new Map(), queue: [], events: [], listed: false, looked: false });
  round += 1;
  stop = new AbortController();
  ask(round);
  hear(round);
  changed();
}

/** Forgets the token and all that came with it. */
export function end(why = "") {
  token.clear();
  round += 1;
  stop.abort();
  Object.assign(state, { signedIn: false, refused: why, info: null, workers: [], sessions: new Map(), queue: [], events: [], away: null, live: false });
  changed();
}

/** What a failed call means for the whole page. The rest is for who called. */
export function failed(error) {
  if (!(error instanceof Failed)) throw error;
  if (error.status === 401) end("The token is no good any more: it was revoked, or has expired.");
  else if (error.away) state.away = error.message;
  else return false;
  changed();
  return true;
}

const looked = () =>
  document.visibilityState === "visible"
    ? Promise.resolve()
    : new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

async function ask(mine) {
  let wait = EVERY;
  while (mine === round) {
    try {
      await look();
      wait = EVERY;
    } catch (error) {
      if (mine !== round) return;
      if (!failed(error)) state.away = error.message;
      changed();
      wait = Math.min(wait * 1.5, LONGEST_WAIT);
    }
    await sleep(wait);
    await looked();
  }
}

/** Asks for what has no events. */
export async function look() {
  const [info, queue, workers] = await Promise.all([
    get("/v1/info"),
    get("/v1/queue?limit=200"),
    isAdmin() ? get("/v1/workers") : { workers: [] },
  ]);
  Object.assign(state, { info, queue: queue.sessions, workers: workers.workers.sort((a, b) => (a.id < b.id ? -1 : 1)), away: null, looked: true });
  changed();
}

/** Sessions that were told of while a list was under way: it may be older than they are. */
let meanwhile = null;

/** Lists the sessions anew. */
export async function list() {
  const seen = (meanwhile = []);
  const { sessions, more } = await get(`/v1/sessions?limit=${MOST_SESSIONS}${state.withEnded ? "&all=true" : ""}`).catch((error) => {
    if (seen === meanwhile) meanwhile = null;
    throw error;
  });
  if (seen !== meanwhile) return;
  meanwhile = null;
  state.sessions = new Map(sessions.map((session) => [session.id, session]));
  for (const session of seen) take(session);
  Object.assign(state, { more, listed: true });
  changed();
}

async function hear(mine) {
  let wait = 500;
  while (mine === round) {
    await looked();
    const hidden = new AbortController();
    const leave = () => {
      if (document.visibilityState !== "visible") hidden.abort();
    };
    document.addEventListener("visibilitychange", leave);
    try {
      let lists = Promise.resolve();
      const opened = () => {
        wait = 500;
        state.live = true;
        lists = list().catch(failed);
      };
      await follow("/v1/events", { signal: AbortSignal.any([stop.signal, hidden.signal]), opened, told });
      await lists;
    } catch (error) {
      if (mine !== round) return;
      if (!hidden.signal.aborted) failed(error);
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    state.live = false;
    changed();
    await sleep(wait);
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

function told(name, data, id) {
  if (name === "error") return;
  state.away = null;
  if (name === "session") take(data.session);
  if (name === "worker") {
    state.workers = state.workers.map((worker) => (worker.id === data.worker.id ? data.worker : worker));
  }
  state.events.unshift({ name, id, ...data });
  state.events.length = Math.min(state.events.length, KEPT_EVENTS);
  for (const then of watchers) then(name, data);
  changed();
}

/** A session as it is now. */
export function take(session) {
  meanwhile?.push(session);
  if (session.state === "ended" && !state.withEnded) state.sessions.delete(session.id);
  else state.sessions.set(session.id, session);
  if (state.sessions.size > MOST_SESSIONS + 200) {
    state.sessions = new Map(newest().slice(0, MOST_SESSIONS).map((kept) => [kept.id, kept]));
    state.more = true;
  }
}

/** Ids grow with time. */
export const newest = () => [...state.sessions.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
