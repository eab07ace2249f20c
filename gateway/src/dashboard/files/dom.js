// Elements, and how a page that is made anew becomes the one that is there.
//
// A view is a function of what is known to a tree of elements. `morph` changes the tree that is shown to that one, node by
// node, so that the focus, what was selected and how far was scrolled stay. Nothing here takes markup: text is text.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit", "onkeydown"];

/** An element. Properties: `class`, handlers, `key` (which one it is among its siblings), `opaque` (its content is not ours to change), attributes. */
export function h(name, properties, ...children) {
  return fill(document.createElement(name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "key" || name === "opaque" || HANDLERS.includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** A drawing of strokes, for those who see; its button has a name for all. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  fill(svg, { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, []);
  svg.append(fill(document.createElementNS(SVG, "path"), { d: path }, []));
  return svg;
}

/** Makes `old` what `fresh` is, and returns the node that is there now. */
export function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.key !== fresh.key) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return old;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) old[name] = fresh[name] ?? null;
  if (!fresh.opaque) morphChildren(old, fresh);
  return old;
}

function morphChildren(old, fresh) {
  const keyed = new Map();
  for (const child of old.childNodes) if (child.key !== undefined) keyed.set(child.key, child);
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const known = child.key === undefined ? undefined : keyed.get(child.key);
    if (known && known !== at) {
      old.insertBefore(known, at);
      morph(known, child);
    } else if (!at) {
      old.append(child);
    } else if (child.key !== undefined && !known) {
      old.insertBefore(child, at);
    } else {
      at = morph(at, child).nextSibling;
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const toasts = () => document.getElementById("toasts");

/** Says what went wrong, or was done, for a while. */
export function tell(text, hint, kind = "bad") {
  const toast = h("div", { class: `toast ${kind}` }, h("strong", {}, text), hint && h("span", {}, hint));
  toast.append(h("button", { class: "plain", "aria-label": "Dismiss", onclick: () => toast.remove() }, "×"));
  toasts().append(toast);
  while (toasts().children.length > 3) toasts().firstChild.remove();
  setTimeout(() => toast.remove(), 12000);
}

/** Asks before something is done that can't be undone. Resolves to the answer, or to null. */
export function ask({ title, text, action, danger, choices }) {
  return new Promise((resolve) => {
    const select = choices && h("select", { id: "choice" }, choices.map(([value, name]) => h("option", { value }, name)));
    const dialog = h(
      "dialog",
      { class: "ask", "aria-labelledby": "ask-title" },
      h("h2", { id: "ask-title" }, title),
      h("p", {}, text),
      select && h("label", { for: "choice" }, "Time for its sessions to end by themselves", select),
      h(
        "div",
        { class: "row end" },
        h("button", { onclick: () => dialog.close() }, "Cancel"),
        h("button", { class: danger ? "danger" : "primary", "data-test": "confirm", onclick: () => dialog.close("yes") }, action),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (select?.value ?? true) : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
