// Line charts with a shared horizontal axis, drawn by uPlot: hover, zoom, log axes, smoothing.
//
// data: {axes: [[key, title], ...], smoothing: bool, log_x: bool, xs: [{key: [...]}], charts:
// [{title, unit, series: [{label, x: {key: [...]}, y: [...], points: bool}]}]}. y may have null for
// no number; x may be the number of one of `xs`, which several series share.
"use strict";

page.define("chart", (root, data) => {
  const { el, number } = page;
  const state = { axis: data.axes[0][0], logX: Boolean(data.log_x), logY: false, smoothing: 0 };
  const grid = el("div", { class: "charts" });
  const live = el("p", { class: "visually-hidden", role: "status" });
  let drawn = [];

  // Exponential moving average; the first values count fully, as in Adam's correction of the bias.
  function smoothed(values, weight) {
    let [mean, share] = [0, 0];
    return values.map((value) => {
      if (value == null) return value;
      mean = weight * mean + (1 - weight) * value;
      share = weight * share + (1 - weight);
      return mean / share;
    });
  }

  // Columns of uPlot: all x in order, then for each series its values, undefined where it has none.
  function columns(series) {
    const usable = (x, y) => x != null && !(state.logX && x <= 0) && y !== undefined;
    const each = series.map((one) => {
      const places = typeof one.x === "number" ? data.xs[one.x] : one.x;
      const xs = places[state.axis] || [];
      const ys = one.y.map((y) => (state.logY && y != null && y <= 0 ? null : y));
      const pairs = new Map();
      xs.forEach((x, i) => { if (usable(x, ys[i])) pairs.set(x, ys[i]); });
      return pairs;
    });
    const xs = [...new Set(each.flatMap((pairs) => [...pairs.keys()]))].sort((a, b) => a - b);
    const raw = each.map((pairs) => xs.map((x) => pairs.get(x)));
    if (!state.smoothing) return [xs, ...raw];
    return [xs, ...raw, ...raw.map((values) => smoothed(values, state.smoothing))];
  }

  const faded = (colour) => `color-mix(in srgb, ${colour} 30%, transparent)`;

  function lines(chart) {
    const line = (one, i, raw) => {
      const stroke = () => {
        const colour = page.colour(one.colour ?? i);
        return raw && state.smoothing ? faded(colour) : colour;
      };
      const few = one.y.length <= 15;
      return {
        label: one.label, stroke, width: raw && state.smoothing ? 1 : 1.6,
        paths: one.points ? () => null : undefined,
        points: { show: one.points || (raw && few), size: one.points ? 9 : 6, fill: stroke, stroke },
      };
    };
    const raw = chart.series.map((one, i) => line(one, i, true));
    if (!state.smoothing) return raw;
    return [...raw, ...chart.series.map((one, i) => line(one, i, false))];
  }

  const axisTitle = () => data.axes.find(([key]) => key === state.axis)[1];
  const logarithmic = (log) => (log ? { distr: 3 } : {});

  function build(chart) {
    const all = columns(chart.series);
    const shown = chart.shown;
    const values = chart.series.map(() => el("span", { class: "value" }));
    const legend = el("ul", { class: "legend" }, chart.series.map((one, i) => {
      const button = el("button", { type: "button", "aria-pressed": String(shown[i]),
        onclick: () => { shown[i] = !shown[i]; redraw(); } },
        el("i", { class: `swatch series-${((one.colour ?? i) % 6) + 1}` }), one.label);
      return el("li", null, button, values[i]);
    }));
    const canvas = el("div", { class: "canvas", tabindex: "0", role: "img",
      "aria-label": described(chart, all) });
    const box = el("figure", { class: "chart" },
      el("figcaption", null, el("b", null, chart.title), chart.unit ? ` (${chart.unit})` : ""),
      legend, canvas, el("p", { class: "axis" }, axisTitle()));
    grid.append(box);
    const axis = { stroke: () => page.token("--ink"), font: "12px system-ui, sans-serif",
      grid: { stroke: () => page.token("--rule"), width: 1 }, ticks: { show: false } };
    const sets = all.length - 1 > chart.series.length ? [...shown, ...shown] : shown;
    const plot = new uPlot({
      width: canvas.clientWidth || 320, height: 230, legend: { show: false },
      scales: { x: { time: false, ...logarithmic(state.logX) }, y: logarithmic(state.logY) },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 60, values: (u, ticks) =>
        ticks.map((tick) => (tick == null ? "" : number(tick, 3))) }],
      series: [{ label: axisTitle() }, ...lines(chart).map((one, i) => ({ ...one, show: sets[i] }))],
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      hooks: { setCursor: [(u) => point(u)] },
    }, all, canvas);

    function point(u) {
      const at = u.cursor.idx;
      chart.series.forEach((one, i) => {
        const value = at == null ? null : all[i + 1][at];
        values[i].textContent = value == null ? "" : number(value);
      });
      box.querySelector(".axis").textContent =
        at == null ? axisTitle() : `${axisTitle()} ${number(all[0][at], 6)}`;
    }
    canvas.addEventListener("keydown", (event) => move(event, plot, all, chart));
    new ResizeObserver(() => {
      if (canvas.clientWidth) plot.setSize({ width: canvas.clientWidth, height: 230 });
    }).observe(canvas);
    return plot;
  }

  // What a screen reader gets: where each line begins, ends, and its extremes.
  function described(chart, all) {
    const parts = chart.series.map((one, i) => {
      const values = all[i + 1].filter((value) => value != null);
      if (!values.length) return `${one.label}: no values`;
      const [low, high] = values.reduce(
        ([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      return `${one.label}: from ${number(values[0])} to ${number(values.at(-1))}, ` +
        `lowest ${number(low)}, highest ${number(high)}`;
    });
    return `${chart.title} against ${axisTitle().toLowerCase()}. ${parts.join(". ")}. ` +
      "Arrow keys read the values.";
  }

  function move(event, plot, all, chart) {
    const last = all[0].length - 1;
    const at = plot.cursor.idx;
    const to = { ArrowLeft: (at ?? last + 1) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    const index = Math.min(Math.max(to, 0), last);
    plot.setCursor({ left: plot.valToPos(all[0][index], "x"), top: 10 });
    const said = chart.series.map((one, i) => `${one.label} ${number(all[i + 1][index])}`);
    live.textContent = `${axisTitle()} ${number(all[0][index], 6)}: ${said.join(", ")}`;
  }

  function redraw() {
    drawn.forEach((plot) => plot.destroy());
    grid.replaceChildren();
    drawn = data.charts.map(build);
  }

  const set = (change) => { change(); redraw(); };
  const axis = page.select(data.axes, (event) => set(() => { state.axis = event.target.value; }));
  const logX = page.checkbox("Log x", (event) => set(() => { state.logX = event.target.checked; }));
  const logY = page.checkbox("Log y", (event) => set(() => { state.logY = event.target.checked; }));
  logX.box.checked = state.logX;
  const smoothing = el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0,
    oninput: (event) => set(() => { state.smoothing = Number(event.target.value); }) });
  const reset = el("button", { type: "button", onclick: redraw }, "Whole range");
  data.charts.forEach((chart) => { chart.shown = chart.series.map(() => true); });
  root.append(
    el("div", { class: "controls" },
      data.axes.length > 1 ? page.labelled("Horizontal axis", axis) : null, logX.control,
      logY.control, data.smoothing ? page.labelled("Smoothing", smoothing) : null, reset),
    el("p", { class: "note help" }, "Drag across a chart to zoom; double-click for the whole range."),
    grid, live);
  redraw();
  page.onRepaint(() => drawn.forEach((plot) => plot.redraw()));
});
