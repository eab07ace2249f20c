// A task's output as it comes.
//
// Its lines are elements of their own, each a row of texts, so that what comes is added and what is there stays. How much
// is kept is bounded: the oldest lines go first. What a program draws over (a carriage return) is drawn over here too; all
// other escapes of a terminal are left out.

import { Failed, follow, part, sleep } from "./api.js";
import { h } from "./dom.js";
import { Plain, bytes } from "./text.js";

const TAIL = 256 * 1024;
const MOST_LINES = 5000;
/** A line without an end is cut into such. */
const LONGEST_LINE = 4000;
const MOST_WAITING = 256;
const NEAR = 40;
const FOR_GOOD = ["NOT_FOUND", "INVALID_ARGUMENT", "OUT_OF_RANGE", "PERMISSION_DENIED", "UNAUTHENTICATED"];

export class Viewer {
  #lines = h("div", { class: "lines", role: "log", "aria-label": "Output", tabindex: 0 });
  #status = h("span", { class: "note", role: "status" });
  #follow = h("button", { class: "chip", "aria-pressed": "true", onclick: () => this.#stick(!this.#sticks, true) }, "Follow");
  #wrap = h("button", { class: "chip", "aria-pressed": "true", onclick: () => this.#turnWrap() }, "Wrap");
  #stop = new AbortController();
  #plain = { stdout: new Plain(), stderr: new Plain() };
  #position = {};
  #line = null;
  #length = 0;
  #returned = false;
  #sticks = true;
  #waiting = [];

  constructor(session, task) {
    this.path = `/v1/sessions/${part(session)}/tasks/${part(task)}/output?follow=true`;
    this.key = `output ${task}`;
    this.element = h("div", { class: "output", opaque: true, key: this.key }, h("div", { class: "row bar" }, h("span", { class: "title" }, "Output"), this.#status, h("span", { class: "space" }), this.#wrap, this.#follow), this.#lines);
    this.#lines.addEventListener("scroll", () => this.#stick(this.#isAtEnd()), { passive: true });
    this.#run();
  }

  close() {
    this.#stop.abort();
  }

  async #run() {
    let wait = 500;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        const path = this.#position.id ? this.path : `${this.path}&tail=${TAIL}`;
        let ended = false;
        const told = (name, data) => {
          wait = 500;
          ended ||= name === "end";
          if (name === "error") throw new Failed(FOR_GOOD.includes(data.error.code) ? 404 : 503, data.error);
          this.#told(name, data);
        };
        await follow(path, { signal, position: this.#position, opened: () => this.#say("live"), told });
        if (ended) return;
      } catch (error) {
        if (signal.aborted) return;
        // A session whose worker was away for a moment is not ready, and then is.
        if (!error.away && error.reason !== "SESSION_NOT_READY") return this.#say(error.message);
      }
      this.#say("waits to go on");
      await sleep(wait);
      wait = Math.min(wait * 2, 8000);
    }
  }

  #say(text) {
    this.#status.textContent = text;
  }

  #told(name, data) {
    if (name === "stdout" || name === "stderr") this.#waiting.push([name, data.data, data.from]);
    else if (name === "lost") this.#waiting.push(["lost", `… ${bytes(data.to - data.from)} of ${data.stream} are no longer kept …\n`]);
    else if (name === "end") this.#say("ended");
    // Hidden pages get no frames; a timer they do, but as rarely as once a minute: what waits for it is bounded.
    if (this.#waiting.length === 1) setTimeout(() => this.#show(), 30);
    else if (this.#waiting.length >= MOST_WAITING) this.#show();
  }

  #show() {
    const waiting = this.#waiting.splice(0);
    for (const [kind, text] of waiting) this.#write(kind, kind === "lost" ? text : this.#plain[kind].push(text));
    while (this.#lines.childElementCount > MOST_LINES) this.#lines.firstChild.remove();
    if (this.#sticks) this.#lines.scrollTop = this.#lines.scrollHeight;
  }

  #write(kind, text) {
    for (const piece of text.split(/(\r?\n|\r)/)) {
      if (piece === "") continue;
      if (piece === "\r") this.#returned = true;
      else if (piece.endsWith("\n")) this.#newLine();
      else this.#add(kind, piece);
    }
  }

  #newLine() {
    if (!this.#line) this.#add("stdout", "");
    this.#line = null;
    this.#returned = false;
  }

  #add(kind, text) {
    if (this.#returned && this.#line) {
      this.#line.replaceChildren();
      this.#length = 0;
    }
    this.#returned = false;
    for (let at = 0; at === 0 || at < text.length; at += LONGEST_LINE) {
      const piece = text.slice(at, at + LONGEST_LINE);
      if (!this.#line || this.#length + piece.length > LONGEST_LINE) {
        this.#line = h("div", {});
        this.#length = 0;
        this.#lines.append(this.#line);
      }
      this.#line.append(kind === "stdout" ? piece : h("span", { class: kind }, piece));
      this.#length += piece.length;
    }
  }

  #isAtEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.#lines;
    return scrollTop + clientHeight >= scrollHeight - NEAR;
  }

  #stick(sticks, byHand = false) {
    this.#sticks = sticks;
    this.#follow.setAttribute("aria-pressed", String(sticks));
    if (sticks && byHand) this.#lines.scrollTop = this.#lines.scrollHeight;
  }

  #turnWrap() {
    const wraps = this.#lines.classList.toggle("nowrap") === false;
    this.#wrap.setAttribute("aria-pressed", String(wraps));
  }
}
