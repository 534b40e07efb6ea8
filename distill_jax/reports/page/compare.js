// The panels of a comparison: which columns of the table are shown, and figures against costs.
"use strict";

// Checkboxes that show and hide columns of the table with the class `data.table`.
page.define("columns", (root, data) => {
  const { el } = page;
  const find = () => [...document.querySelectorAll("table.interactive")]
    .find((table) => table.dataset.name === data.table);
  const show = (column, shown) => {
    for (const row of find().rows) row.cells[column].hidden = !shown;
  };
  const boxes = data.columns.map(([column, title, shown]) => {
    const { box, control } = page.checkbox(title, () => show(column, box.checked));
    box.checked = shown;
    if (!shown) show(column, false);
    return control;
  });
  root.append(el("fieldset", { class: "controls" }, el("legend", {}, "Columns"), ...boxes));
});

// One point a setting, with the deviation over its seeds, and the frontier: the settings that no
// other one beats in both. data: {points: [{label, n, values: {key: [mean, deviation]}}],
// x: [[key, title, log]], y: [[key, title, better, factor]]}.
page.define("scatter", (root, data) => {
  const { el, svg, number } = page;
  const state = { x: data.x[0][0], y: data.y[0][0] };
  const [width, height, left, bottom, top, right] = [640, 380, 64, 46, 12, 16];
  const plot = el("div", { class: "scroll" });
  const said = el("p", { class: "note", role: "status" });
  const choose = (name, options) => page.labelled(name === "x" ? "Across" : "Up",
    page.select(options, (event) => { state[name] = event.target.value; draw(); }));

  function ticks(low, high, log) {
    if (log && high / low >= 10) {
      const found = [];
      for (let e = Math.ceil(Math.log10(low)); 10 ** e <= high * 1.0001; e++) found.push(10 ** e);
      if (found.length > 1) return found;
    }
    const step0 = (high - low) / 4, size = 10 ** Math.floor(Math.log10(step0));
    const step = [1, 2, 5, 10].map((k) => k * size).find((k) => k >= step0);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(v);
    return found;
  }

  function draw() {
    const [, xTitle, log] = data.x.find(([key]) => key === state.x);
    const [, yTitle, better, factor] = data.y.find(([key]) => key === state.y);
    const points = data.points.map((point, i) => ({
      ...point, i, x: point.values[state.x], y: point.values[state.y],
    })).filter(({ x, y }) => x && y && x[0] != null && y[0] != null && (!log || x[0] > 0))
      .map((p) => ({ ...p, x: p.x[0], y: factor * p.y[0], sd: factor * (p.y[1] || 0) }));
    plot.replaceChildren();
    if (!points.length) {
      said.textContent = "No run has both of these.";
      return;
    }
    const span = (values, share) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const pad = (high - low) * share || Math.abs(high) * 0.1 || 1;
      return [low - pad, high + pad];
    };
    const scaled = log ? Math.log10 : (v) => v;
    const [x0, x1] = span(points.map((p) => scaled(p.x)), 0.12);
    const [y0, y1] = span(points.flatMap((p) => [p.y - p.sd, p.y + p.sd]), 0.1);
    const at = (v) => left + (scaled(v) - x0) / (x1 - x0) * (width - left - right);
    const up = (v) => height - bottom - (v - y0) / (y1 - y0) * (height - bottom - top);
    const axis = [];
    for (const v of ticks(log ? 10 ** x0 : x0, log ? 10 ** x1 : x1, log)) {
      axis.push(svg("line", { x1: at(v), x2: at(v), y1: top, y2: height - bottom, class: "rule" }),
        svg("text", { x: at(v), y: height - bottom + 16, "text-anchor": "middle" }, number(v)));
    }
    for (const v of ticks(y0, y1, false)) {
      axis.push(svg("line", { x1: left, x2: width - right, y1: up(v), y2: up(v), class: "rule" }),
        svg("text", { x: left - 8, y: up(v) + 4, "text-anchor": "end" }, number(v)));
    }
    const sign = better === "high" ? 1 : -1;
    const order = [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y));
    const frontier = [];
    for (const p of order) {
      if (!frontier.length || sign * p.y > sign * frontier[frontier.length - 1].y) frontier.push(p);
    }
    const line = frontier.map((p) => `${at(p.x)},${up(p.y)}`).join(" ");
    // Names that would lie on each other are moved apart, from the top down.
    const taken = [];
    for (const p of [...points].sort((a, b) => up(a.y) - up(b.y))) {
      p.text = up(p.y) - 7;
      while (taken.some((q) => Math.abs(at(q.x) - at(p.x)) < 120 && Math.abs(q.text - p.text) < 13)) {
        p.text += 2;
      }
      taken.push(p);
    }
    const marks = points.map((p) => {
      const words = `${p.label}${p.n > 1 ? ` (${p.n} seeds)` : ""}: ${yTitle} ${number(p.y)}` +
        `${p.sd ? ` ± ${number(p.sd)}` : ""}, ${xTitle} ${number(p.x)}`;
      const show = () => { said.textContent = words; };
      return svg("g", { class: `point series-${p.i % 6 + 1}`, tabindex: "0", role: "img",
        "aria-label": words, onfocus: show, onmouseenter: show },
        svg("title", {}, words),
        p.sd ? svg("line", { x1: at(p.x), x2: at(p.x), y1: up(p.y - p.sd), y2: up(p.y + p.sd),
          class: "spread" }) : null,
        svg("circle", { cx: at(p.x), cy: up(p.y), r: 5 }),
        svg("text", { x: at(p.x) + (at(p.x) > width * 0.75 ? -9 : 9), y: p.text,
          "text-anchor": at(p.x) > width * 0.75 ? "end" : "start" },
          p.label.length > 28 ? `${p.label.slice(0, 27)}…` : p.label));
    });
    plot.append(svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "scatter", role: "group",
      "aria-label": `${yTitle} against ${xTitle}, ${points.length} settings` },
      ...axis,
      svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" },
        xTitle + (log ? " (log)" : "")),
      svg("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle",
        transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, yTitle),
      frontier.length > 1 ? svg("polyline", { points: line, class: "frontier" }) : null,
      ...marks));
    said.textContent = `Frontier, which no other setting beats in both: ` +
      `${frontier.map((p) => p.label).join(", ")}.`;
  }

  root.append(el("div", { class: "controls" }, choose("y", data.y), choose("x", data.x)),
    plot, said);
  draw();
});
