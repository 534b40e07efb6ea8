// Square matrices of classes as heat maps: one or two of them, with the value under the pointer or
// the arrow keys.
//
// data: {names: [K], maps: [{title, rows, columns, values: base64 of float32 [K, K], counts: bool}]}.
// Cells are shaded by value^0.6 of a row's share, which brightens rare ones.
"use strict";

page.define("matrix", (root, data) => {
  const { el, number, percent } = page;
  const size = data.names.length;
  const side = Math.max(1, Math.min(14, Math.floor(420 / size))) * size * 2;

  function draw(map) {
    const values = page.float32s(map.values);
    const total = new Float64Array(size);
    values.forEach((value, i) => { total[Math.floor(i / size)] += value; });
    const share = (i, j) => values[i * size + j] / (map.counts ? Math.max(total[i], 1) : 1);
    const canvas = el("canvas", { width: side, height: side, tabindex: "0", role: "img" });
    const readout = el("p", { class: "readout", role: "status" }, "\u00a0");
    const at = { row: 0, column: 0 };
    canvas.setAttribute("aria-label",
      `${map.title}: ${size} by ${size} classes. Arrow keys read the cells.`);

    function paint() {
      const context = canvas.getContext("2d");
      const cell = side / size;
      context.clearRect(0, 0, side, side);
      context.fillStyle = page.token("--card");
      context.fillRect(0, 0, side, side);
      context.fillStyle = page.token("--series-1");
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) {
          const shade = Math.min(share(i, j), 1) ** 0.6;
          if (shade < 0.004) continue;
          context.globalAlpha = shade;
          context.fillRect(j * cell, i * cell, Math.ceil(cell), Math.ceil(cell));
        }
      }
      context.globalAlpha = 1;
    }
    function read(i, j) {
      Object.assign(at, { row: i, column: j });
      const value = values[i * size + j];
      readout.textContent = `${map.rows} ${data.names[i]}, ${map.columns} ${data.names[j]}: ` +
        (map.counts ? `${number(value)} (${percent(share(i, j))})` : percent(value, 2));
    }
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const to = (offset, length) => Math.min(size - 1, Math.max(0, Math.floor(size * offset / length)));
      read(to(event.clientY - box.top, box.height), to(event.clientX - box.left, box.width));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const within = (k) => Math.min(size - 1, Math.max(0, k));
      read(within(at.row + step[0]), within(at.column + step[1]));
    });
    paint();
    page.onRepaint(paint);
    return el("figure", { class: "matrix" },
      el("figcaption", null, el("b", null, map.title), ` rows: ${map.rows}, columns: ${map.columns}`),
      canvas, readout);
  }
  root.append(el("div", { class: "matrices" }, data.maps.map(draw)));
});
