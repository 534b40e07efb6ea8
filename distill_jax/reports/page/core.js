// What every panel of a page uses: elements, numbers, colours, and the list of panels.
// Text of the data reaches the page through text nodes alone, never as markup.
"use strict";

const page = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const drawers = new Map();

  // An element: el("p", {class: "note", onclick: f}, "text", other). null children are left out.
  function make(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child != null));
    return node;
  }
  const el = (tag, attributes, ...children) =>
    make(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    make(document.createElementNS(SVG, tag), attributes, children);

  let ids = 0;
  const newId = (prefix) => `${prefix}-${++ids}`;

  // A form control under its label.
  function labelled(text, control) {
    control.id = control.id || newId("control");
    return el("div", { class: "control" }, el("label", { for: control.id }, text), control);
  }
  const select = (options, onchange) =>
    el("select", { onchange },
      options.map(([value, text]) => el("option", { value }, text)));
  function checkbox(text, onchange) {
    const box = el("input", { type: "checkbox", id: newId("control"), onchange });
    return { box, control: el("div", { class: "control check" }, box, el("label", { for: box.id }, text)) };
  }

  // A number with about four significant digits, a dash for a missing one.
  function number(value, digits = 4) {
    if (value == null || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
    if (Number.isInteger(value) || size >= 1e4) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(digits)));
  }
  const percent = (value, digits = 1) =>
    value == null || !Number.isFinite(value) ? "–" : `${(100 * value).toFixed(digits)}%`;

  // The value of a design token, such as "--ink", in the present colour scheme.
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (i) => token(`--series-${(i % 6) + 1}`);

  // Calls `redraw` when the colours change: another scheme, or light colours for a printer.
  const repainted = new Set();
  const repaint = () => repainted.forEach((redraw) => redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      document.documentElement.classList.toggle("printing", printing);
      repaint();
    });
  }

  // Numbers that Python wrote as base64 of little-endian bytes of a typed array.
  function bytes(text) {
    const raw = atob(text);
    const array = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
    return array.buffer;
  }
  const float32s = (text) => new Float32Array(bytes(text));

  function start() {
    for (const root of document.querySelectorAll("[data-panel]")) {
      const data = root.querySelector(':scope > script[type="application/json"]');
      try {
        drawers.get(root.dataset.panel)(root, JSON.parse(data.textContent));
      } catch (error) {
        root.append(el("p", { class: "note" }, "This part of the page could not be drawn."));
        console.error(error);
      }
    }
    document.querySelectorAll("table.interactive").forEach((table) => drawers.get("table")(table));
    document.querySelectorAll(".scroll").forEach(hintAtScrolling);
  }

  // A line above what scrolls sideways, for as long as a part of it is hidden.
  function hintAtScrolling(box) {
    const hint = el("p", { class: "scroll-hint", "aria-hidden": "true" }, "Scrolls sideways →");
    box.before(hint);
    const update = () => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; };
    new ResizeObserver(update).observe(box);
    update();
  }

  document.addEventListener("DOMContentLoaded", start);
  return {
    el, svg, newId, labelled, select, checkbox, number, percent, token, colour, float32s,
    define: (kind, draw) => drawers.set(kind, draw),
    onRepaint: (redraw) => repainted.add(redraw),
    hintAtScrolling,
  };
})();
