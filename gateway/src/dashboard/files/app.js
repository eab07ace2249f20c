// The dashboard: which view is shown, and the way in.

import { begin, changed, end, onChange, state } from "./store.js";
import { token } from "./api.js";
import { h, morph } from "./dom.js";
import { banner, head, logo, recallTheme, themeButton } from "./parts.js";
import { events, fillFilters, overview, queue, sessions, workers } from "./lists.js";
import { enter, leave, mount, session, task, worker } from "./details.js";

/** A path's words to its view: which link of the head it stands under, and what shows it. */
function route() {
  const words = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  const [top, id, below, last] = words;
  if (!top) return { name: "", show: overview };
  if (top === "workers") return id ? { name: top, kind: "worker", ids: [id], show: worker } : { name: top, show: workers };
  if (top === "sessions" && below === "tasks" && last) return { name: top, kind: "task", ids: [id, last], show: task };
  if (top === "sessions") return id ? { name: top, kind: "session", ids: [id], show: session } : { name: top, show: sessions };
  if (top === "queue") return { name: top, show: queue };
  if (top === "events") return { name: top, show: events };
  return { name: "", show: overview };
}

let at = "";
/** What is typed into the form, until it is sent: nothing of it is kept. */
let trying = false;
let problem = "";

function signIn() {
  const submit = async (event) => {
    event.preventDefault();
    const field = event.target.elements.token;
    if (!field.value.trim()) return;
    token.set(field.value.trim());
    field.value = "";
    await tryToken();
  };
  return h(
    "main",
    { class: "alone", id: "main" },
    h("div", { class: "corner" }, themeButton()),
    h("div", { class: "brand large" }, logo(), "Berth"),
    h(
      "form",
      { class: "panel", onsubmit: submit },
      h("label", { for: "token" }, "Token"),
      h("input", { id: "token", name: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "Paste a token" }),
      h("button", { class: "primary", disabled: trying }, trying ? "Signing in …" : "Sign in"),
      (problem || state.refused) && h("p", { class: "wrong", role: "alert" }, problem || state.refused),
    ),
    h("p", { class: "note" }, h("code", {}, "berth dashboard"), " prints a link that signs you in, ", h("code", {}, "berth token create"), " a token. It is kept in this tab alone."),
  );
}

async function tryToken() {
  trying = true;
  problem = "";
  changed();
  for (;;) {
    try {
      await begin();
      break;
    } catch (error) {
      problem = error.status === 401 ? "That token is no good." : error.message;
      // A page that is loaded anew while nobody answers is not signed out by that.
      if (!error.away) {
        token.clear();
        break;
      }
      changed();
      await new Promise((resolve) => setTimeout(resolve, 2000));
      if (!token.get()) break;
    }
  }
  trying = false;
  changed();
}

function page() {
  const { name, show, ids } = route();
  return h("div", { id: "app" }, h("button", { class: "skip", onclick: () => document.getElementById("main").focus() }, "To the content"), head(name, () => end()), banner(), h("main", { id: "main", tabindex: -1 }, show(ids)));
}

function render() {
  if (!state.signedIn) {
    if (at) leave();
    at = "";
    show(h("div", { id: "app" }, signIn()));
    document.title = "Berth";
    return;
  }
  const { kind, ids, name } = route();
  const here = `${kind ?? name} ${ids?.join(" ") ?? ""}`;
  if (here !== at) {
    at = here;
    enter(kind, ids);
    scrollTo(0, 0);
  }
  show(page());
  const heading = document.querySelector("h1")?.textContent;
  document.title = heading ? `${heading} – Berth` : "Berth";
}

function show(fresh) {
  morph(document.getElementById("app"), fresh);
  fillFilters(document);
  mount(document);
}

function turned() {
  if (token.take()) tryToken();
  else render();
}

recallTheme();
token.take();
onChange(render);
addEventListener("hashchange", turned);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
render();
if (token.get()) tryToken();
// Ages grow although nothing happens.
setInterval(() => state.signedIn && document.visibilityState === "visible" && changed(), 5000);
