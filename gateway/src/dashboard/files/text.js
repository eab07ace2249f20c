// Words for values, and foreign text made safe to read.
//
// Names, labels and output come from sandboxes and their clients. They go into the page as text nodes, which run nothing;
// what is left to be done is that they can't hide: escapes that drive a terminal, and characters that turn the direction of
// writing, are taken out or shown.

const TURNS = /[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g;
// eslint-disable-next-line no-control-regex
const CONTROLS = /[\u0000-\u001f\u007f-\u009f]/g;

/** One line of foreign text: what can't be seen in it is shown as an escape. */
export function readable(text) {
  const hex = (c, n) => c.charCodeAt(0).toString(16).padStart(n, "0");
  return String(text ?? "")
    .replace(CONTROLS, (c) => `\\x${hex(c, 2)}`)
    .replace(TURNS, (c) => `\\u{${hex(c, 4)}}`);
}

/** The same, no longer than that. */
export function clipped(text, most) {
  const shown = readable(text);
  return shown.length > most ? `${shown.slice(0, most - 1)}…` : shown;
}

/** Takes terminal escapes out of a stream of text, whose pieces may cut them anywhere. Line feeds, carriage returns and tabs stay. */
export class Plain {
  #state = "text";

  push(text) {
    let kept = "";
    for (const c of text) {
      const code = c.codePointAt(0);
      switch (this.#state) {
        case "escape":
          if (c === "[") this.#state = "control";
          else if (c === "]" || c === "P" || c === "X" || c === "^" || c === "_") this.#state = "string";
          else if (code >= 0x20 && code <= 0x2f) this.#state = "escape";
          else this.#state = "text";
          break;
        case "control":
          if (code >= 0x40 && code <= 0x7e) this.#state = "text";
          else if (code === 0x1b) this.#state = "escape";
          break;
        case "string":
          // Ended by BEL, or by escape and a backslash. A line feed ends it too: a stray opening must not eat the rest.
          if (code === 7 || code === 10 || code === 0x9c) this.#state = "text";
          else if (code === 0x1b) this.#state = "escape";
          if (code === 10) kept += c;
          break;
        default:
          if (code === 0x1b) this.#state = "escape";
          else if (code === 0x9b) this.#state = "control";
          else if (code === 0x9d || code === 0x90) this.#state = "string";
          else if (c === "\n" || c === "\r" || c === "\t") kept += c;
          else if (code >= 0x20 && !(code >= 0x7f && code < 0xa0)) kept += c;
      }
    }
    return kept.replace(TURNS, (c) => `\\u{${c.charCodeAt(0).toString(16)}}`);
  }
}

/** An id, as people write it. */
export const short = (id) => String(id).slice(-8);

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value) {
  if (value === undefined || value === null) return "–";
  let at = 0;
  let rest = Number(value);
  while (rest >= 1024 && at < UNITS.length - 1) {
    rest /= 1024;
    at += 1;
  }
  return `${rest >= 100 || Number.isInteger(rest) ? Math.round(rest) : rest.toFixed(1)} ${UNITS[at]}`;
}

export const cores = (millis) => (millis === undefined ? "–" : String(Math.round(millis / 10) / 100));

/** Seconds, in at most two units. */
export function span(seconds) {
  const s = Math.max(0, Number(seconds));
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s < 10 ? Math.round(s * 10) / 10 : Math.round(s)} s`;
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => s >= size);
  const [name, size] = parts[first];
  const whole = Math.floor(s / size);
  const next = parts[first + 1];
  const rest = next ? Math.floor((s - whole * size) / next[1]) : 0;
  return rest && whole < 10 ? `${whole} ${name} ${rest} ${next[0]}` : `${whole} ${name}`;
}

/** Whole seconds for what changes all the time. */
export function ago(time) {
  if (!time) return "–";
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  return seconds < 60 ? `${Math.floor(seconds)} s` : span(seconds);
}

export function left(time) {
  if (!time) return "–";
  const seconds = (Date.parse(time) - Date.now()) / 1000;
  return seconds <= 0 ? "now" : seconds < 60 ? `${Math.ceil(seconds)} s` : span(seconds);
}

export const clock = (time) => (time ? new Date(time).toLocaleTimeString([], { hour12: false }) : "");
export const moment = (time) => (time ? new Date(time).toLocaleString([], { hour12: false }) : "–");
export const words = (name) => String(name ?? "").replaceAll("_", " ");
export const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
