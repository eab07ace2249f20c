// The way to the gateway: calls below /v1, and streams of events, with the token that the user gave.
//
// The token is kept for as long as the tab is open, and sent in a header to where the page came from and nowhere else. A
// link may bring it behind `#`, which browsers send to nobody; it is taken out of the address before anything else.

const KEY = "berth-token";
// The gateway says that it is there every 15 s.
const SILENCE = 40000;

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
  /** Takes it out of the address, if it is there. */
  take() {
    const found = /^#token=([^&]+)/.exec(location.hash);
    if (!found) return false;
    this.set(decodeURIComponent(found[1]));
    history.replaceState(null, "", `${location.pathname}#/`);
    return true;
  },
};

/** Why a call failed. */
export class Failed extends Error {
  constructor(status, { code, reason, message, hint } = {}) {
    super(message ?? `the gateway answered ${status}`);
    Object.assign(this, { status, code, reason, hint });
  }

  /** Nobody answers, or not for the coordinator: to be tried again. */
  get away() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

async function send(method, path, { body, signal, accept = "application/json", headers } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      headers: { Authorization: `Bearer ${token.get()}`, Accept: accept, ...(body && { "Content-Type": "application/json" }), ...headers },
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted && signal.reason !== "late") throw error;
    throw new Failed(0, { message: "the gateway does not answer", hint: "is the coordinator up?" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Failed(response.status, told.error);
}

/** Repeated once where nobody answered: a browser drops what is under way whenever a network of its machine comes or goes. All that is asked here may be repeated. */
async function call(method, path, body) {
  try {
    return await once(method, path, body);
  } catch (error) {
    if (error.status !== 0) throw error;
  }
  await sleep(300);
  return once(method, path, body);
}

async function once(method, path, body) {
  const late = new AbortController();
  // To end a session may take a checkpoint.
  const timer = setTimeout(() => late.abort("late"), method === "GET" ? 15000 : 90000);
  try {
    const response = await send(method, path, { body, signal: late.signal });
    return await response.json();
  } catch (error) {
    if (error instanceof Failed) throw error;
    throw new Failed(0, { message: "the gateway did not answer in time" });
  } finally {
    clearTimeout(timer);
  }
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

/** A part of a path. */
export const part = encodeURIComponent;

/** The bytes of an artifact. */
export const content = async (path) => (await send("GET", path, { accept: "*/*" })).blob();

/**
 * Reads a stream of events to its end: `opened` once, then `told(name, data, id)`. Resolves when it ends, fails when it
 * breaks or nothing has come for too long. `position.id` is kept up to date, and where it is set the stream goes on from there.
 */
export async function follow(path, { signal, position = {}, opened, told }) {
  const headers = position.id ? { "Last-Event-ID": position.id } : {};
  const late = new AbortController();
  let timer;
  const hear = () => {
    clearTimeout(timer);
    timer = setTimeout(() => late.abort("late"), SILENCE);
  };
  hear();
  try {
    const response = await send("GET", path, { signal: AbortSignal.any([signal, late.signal]), accept: "text/event-stream", headers });
    opened?.();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      hear();
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        event(rest.slice(0, end), position, told);
        rest = rest.slice(end + 2);
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failed) throw error;
    throw new Failed(0, { message: "the stream broke" });
  } finally {
    clearTimeout(timer);
    late.abort("over");
  }
}

function event(text, position, told) {
  let name;
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
    else if (line.startsWith("id: ")) position.id = line.slice(4);
  }
  if (name) told(name, JSON.parse(data), position.id);
}

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
