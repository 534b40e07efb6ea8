// The dark-knowledge browser: what teacher and student find likely in one example, at any
// temperature, p_k = exp(z_k / T) / sum_j exp(z_j / T) (Hinton, Vinyals & Dean 2015, section 2).
//
// data: {names: [K], ids: [E], labels: [E], student, teacher: base64 of float32 [E, K] (teacher
// may be null), images: [E] data URIs or null}.
"use strict";

page.define("browser", (root, data) => {
  const { el, number, percent } = page;
  const classes = data.names.length;
  const most = 12; // classes that are drawn, of many
  const networks = [["Teacher", data.teacher], ["Student", data.student]]
    .filter(([, logits]) => logits)
    .map(([title, logits]) => ({ title, logits: page.float32s(logits) }));
  const guide = networks[0];
  const student = networks.at(-1);
  const count = data.ids.length;
  const rowOf = (network, i) => network.logits.subarray(i * classes, (i + 1) * classes);

  function logSoftmax(logits, temperature) {
    const top = logits.reduce((a, b) => Math.max(a, b), -Infinity) / temperature;
    const shifted = Array.from(logits, (z) => z / temperature - top);
    const total = Math.log(shifted.reduce((sum, z) => sum + Math.exp(z), 0));
    return shifted.map((z) => z - total);
  }
  const entropy = (logs) => -logs.reduce((sum, l) => (l > -700 ? sum + Math.exp(l) * l : sum), 0);
  const divergence = (p, q) =>
    p.reduce((sum, l, k) => (l > -700 ? sum + Math.exp(l) * (l - q[k]) : sum), 0);
  const argmax = (values) => values.reduce((best, v, k) => (v > values[best] ? k : best), 0);

  // What the choices are made from, at T = 1.
  const facts = data.ids.map((id, i) => {
    const [p, q] = [logSoftmax(rowOf(guide, i), 1), logSoftmax(rowOf(student, i), 1)];
    const [first, second] = [argmax(p), argmax(q)];
    return { i, id, label: data.labels[i], teacher: first, student: second,
      entropy: entropy(p), kl: divergence(p, q) };
  });
  const uncertain = (a, b) => b.entropy - a.entropy;
  const whose = networks.length > 1 ? "teacher" : "student";
  const choices = [
    [`Least certain ${whose}`, () => true, uncertain],
    [`Most certain ${whose}`, () => true, (a, b) => a.entropy - b.entropy],
    ...(networks.length > 1 ? [
      ["Student and teacher differ", (f) => f.teacher !== f.student, (a, b) => b.kl - a.kl],
      ["Teacher right, student wrong", (f) => f.teacher === f.label && f.student !== f.label, uncertain],
      ["Student right, teacher wrong", (f) => f.student === f.label && f.teacher !== f.label, uncertain],
      ["Both wrong", (f) => f.student !== f.label && f.teacher !== f.label, uncertain],
    ] : [["Wrong", (f) => f.student !== f.label, uncertain]]),
    ["In the order of the split", () => true, (a, b) => a.id - b.id],
  ];

  const state = { choice: 0, label: "", search: "", at: 0, temperature: 1, list: [] };

  function refresh() {
    const [, wanted, order] = choices[state.choice];
    const words = state.search.toLowerCase();
    const matches = (f) => !words || String(f.id) === words ||
      [f.label, f.teacher, f.student].some((k) => data.names[k].toLowerCase().includes(words));
    state.list = facts
      .filter((f) => wanted(f) && (state.label === "" || f.label === Number(state.label)) && matches(f))
      .sort(order);
    state.at = Math.min(state.at, Math.max(state.list.length - 1, 0));
    strip();
    show();
  }

  // The examples to choose from, a few at a time around the present one.
  const thumbs = el("div", { class: "thumbs", role: "listbox", tabindex: "0",
    "aria-label": "Examples", "aria-orientation": "horizontal" });
  const shownAtOnce = 24;
  function strip() {
    const begin = Math.floor(state.at / shownAtOnce) * shownAtOnce;
    const options = state.list.slice(begin, begin + shownAtOnce).map((f, j) => {
      const at = begin + j;
      return el("div", { class: "thumb", role: "option", id: `${thumbs.id}-${at}`,
        "aria-selected": String(at === state.at), onclick: () => go(at) },
      picture(f), el("span", { class: "visually-hidden" }, described(f)),
      data.images[f.i] ? null : el("span", { "aria-hidden": "true" }, `#${f.id}`));
    });
    thumbs.replaceChildren(...options);
    if (options.length) thumbs.setAttribute("aria-activedescendant", `${thumbs.id}-${state.at}`);
    else thumbs.removeAttribute("aria-activedescendant");
    position.textContent = state.list.length
      ? `${state.at + 1} of ${state.list.length.toLocaleString("en-US")} examples`
      : "No example fits.";
    [before, after].forEach((button) => { button.disabled = !state.list.length; });
  }
  const described = (f) => `Example ${f.id}, class ${data.names[f.label]}`;
  const picture = (f) => (data.images[f.i] ? el("img", { src: data.images[f.i], alt: "" }) : null);

  function go(at) {
    if (!state.list.length) return;
    state.at = Math.min(Math.max(at, 0), state.list.length - 1);
    strip();
    show();
  }
  thumbs.id = page.newId("thumbs");
  thumbs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    const ends = { Home: 0, End: state.list.length - 1 };
    if (event.key in step) go(state.at + step[event.key]);
    else if (event.key in ends) go(ends[event.key]);
    else return;
    event.preventDefault();
  });

  const view = el("div", { class: "example" });
  const live = el("p", { class: "visually-hidden", role: "status" });
  const short = (name, most = 40) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);

  function show() {
    const f = state.list[state.at];
    if (!f) {
      view.replaceChildren();
      live.textContent = "No example fits.";
      return;
    }
    const logs = networks.map((network) => logSoftmax(rowOf(network, f.i), state.temperature));
    const rank = [...logs[0].keys()].sort((a, b) => logs[0][b] - logs[0][a]);
    let shown = [...Array(classes).keys()];
    if (classes > most) {
      const wanted = new Set([f.label, f.teacher, f.student, ...rank.slice(0, most - 2)]);
      shown = rank.filter((k) => wanted.has(k)).slice(0, most);
      if (!shown.includes(f.label)) shown.push(f.label);
      if (!shown.includes(f.student)) shown.push(f.student);
    }
    const parts = networks.map((network, n) => ({
      ...network, logs: logs[n], guess: argmax(logs[n]), entropy: entropy(logs[n]) }));
    const kl = parts.length > 1 ? divergence(parts[0].logs, parts[1].logs) : null;
    view.replaceChildren(
      el("div", { class: "subject" }, picture(f),
        el("p", null, el("b", null, data.names[f.label]), el("br"),
          el("span", { class: "note" }, `example ${f.id} of the test split`))),
      el("div", { class: "networks" }, parts.map((part) => bars(part, f, shown))),
      el("p", { class: "figures" },
        parts.map((part) => `Entropy of the ${part.title.toLowerCase()} ${number(part.entropy, 3)} nats`)
          .join(" · "), kl == null ? "" : ` · KL(teacher ‖ student) ${number(kl, 3)} nats`,
        ` at T = ${shownTemperature()}, without the factor T²`));
    live.textContent = `${described(f)}, temperature ${shownTemperature()}. ` + parts.map((part) =>
      `${part.title}: ${data.names[part.guess]} ${percent(Math.exp(part.logs[part.guess]))}, ` +
      `true class ${percent(Math.exp(part.logs[f.label]))}`).join(". ") +
      (kl == null ? "" : `. KL ${number(kl, 3)} nats`);
  }

  function bars(part, f, shown) {
    const rows = shown.map((k) => {
      const p = Math.exp(part.logs[k]);
      const bar = el("span", { class: "bar" });
      bar.style.width = `${100 * p}%`;
      const marks = [k === f.label ? "true class" : null, k === part.guess ? "predicted" : null]
        .filter(Boolean).join(", ");
      return el("tr", { class: k === f.label ? "truth" : null },
        el("th", { scope: "row", title: data.names[k] }, k === f.label ? "✓ " : "", short(data.names[k]),
          marks ? el("span", { class: "visually-hidden" }, ` (${marks})`) : null),
        el("td", { class: "track", "aria-hidden": "true" }, bar),
        el("td", { class: "number" }, percent(p)));
    });
    const right = part.guess === f.label ? "right" : "wrong";
    return el("table", { class: "bars" },
      el("caption", null, el("b", null, part.title), ` predicts ${short(data.names[part.guess], 20)}, ${right}`),
      el("thead", { class: "visually-hidden" }, el("tr", null, el("th", { scope: "col" }, "Class"),
        el("th", { scope: "col" }, "Bar"), el("th", { scope: "col" }, "Probability"))),
      el("tbody", null, rows));
  }

  const shownTemperature = () => number(state.temperature, 3);
  const slider = el("input", { type: "range", min: -2, max: 5, step: 0.1, value: 0 });
  const output = el("output", { class: "value" });
  function temperature() {
    state.temperature = 2 ** Number(slider.value);
    output.textContent = ` T = ${shownTemperature()}`;
    slider.setAttribute("aria-valuetext", `temperature ${shownTemperature()}`);
    show();
  }
  slider.addEventListener("input", temperature);

  const choice = page.select(choices.map(([title], i) => [i, title]), (event) => {
    Object.assign(state, { choice: Number(event.target.value), at: 0 });
    refresh();
  });
  const present = [...new Set(data.labels)].sort((a, b) => a - b);
  const label = page.select([["", "All classes"], ...present.map((k) => [k, short(data.names[k])])],
    (event) => { Object.assign(state, { label: event.target.value, at: 0 }); refresh(); });
  const search = el("input", { type: "search", autocomplete: "off",
    oninput: (event) => { Object.assign(state, { search: event.target.value.trim(), at: 0 }); refresh(); } });
  const before = el("button", { type: "button", onclick: () => go(state.at - 1) }, "← Previous");
  const after = el("button", { type: "button", onclick: () => go(state.at + 1) }, "Next →");
  const position = el("span", { class: "count" });
  const heat = page.labelled("Temperature, 1/4 to 32 by log scale", slider);
  heat.append(output);
  heat.classList.add("wide");
  root.append(
    el("div", { class: "controls" }, page.labelled("Examples", choice),
      page.labelled("True class", label), page.labelled("Search names or number", search)),
    thumbs,
    el("div", { class: "controls" }, before, after, position),
    el("div", { class: "controls" }, heat),
    view, live);
  root.dataset.examples = String(count);
  refresh();
  temperature();
});
