// Tables that sort by a column, filter by text, unfold beyond the first rows, and export as CSV.
// They are whole tables before: without scripts, and in print, all rows are there.
"use strict";

page.define("table", (table) => {
  const { el } = page;
  const rows = [...table.tBodies[0].rows];
  const order = new Map(rows.map((row, i) => [row, i]));
  const most = Number(table.dataset.shown || rows.length);
  const state = { column: -1, down: false, filter: "", all: rows.length <= most };
  const heads = [...table.tHead.rows[0].cells];
  const numeric = heads.map((cell) => cell.classList.contains("number"));

  // What a cell is sorted by: a number column by its first number, with missing ones last.
  function key(row, column) {
    const text = row.cells[column].textContent;
    if (!numeric[column]) return text.toLowerCase();
    const value = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
    return Number.isNaN(value) ? null : value;
  }

  function compare(a, b) {
    const [x, y] = [key(a, state.column), key(b, state.column)];
    if (x === null || y === null) return (x === null) - (y === null);
    const found = x < y ? -1 : x > y ? 1 : 0;
    return (state.down ? -found : found) || order.get(a) - order.get(b);
  }

  function update() {
    const sorted = state.column < 0 ? rows : [...rows].sort(compare);
    const found = sorted.filter((row) => row.textContent.toLowerCase().includes(state.filter));
    const shown = new Set(state.all ? found : found.slice(0, most));
    for (const row of sorted) row.classList.toggle("folded", !shown.has(row));
    table.tBodies[0].append(...sorted);
    heads.forEach((cell, i) => {
      const direction = state.down ? "descending" : "ascending";
      if (i === state.column) cell.setAttribute("aria-sort", direction);
      else cell.removeAttribute("aria-sort");
    });
    count.textContent = `${shown.size.toLocaleString("en-US")} of ` +
      `${rows.length.toLocaleString("en-US")} rows`;
    unfold.hidden = rows.length <= most;
    unfold.textContent = state.all ? `Show ${most} rows` : `Show all ${found.length} rows`;
    unfold.setAttribute("aria-expanded", String(state.all));
  }

  heads.forEach((cell, i) => {
    const sort = () => {
      // Numbers begin with the largest: that is what one looks for.
      state.down = state.column === i ? !state.down : numeric[i];
      state.column = i;
      update();
    };
    const title = cell.textContent;
    cell.replaceChildren(el("button", { type: "button", class: "sort", onclick: sort }, title));
  });

  const filter = el("input", { type: "search", autocomplete: "off" });
  filter.addEventListener("input", () => {
    state.filter = filter.value.trim().toLowerCase();
    update();
  });
  const count = el("span", { class: "count", role: "status" });
  const unfold = el("button", { type: "button", onclick: () => { state.all = !state.all; update(); } });
  const titles = heads.map((cell) => cell.textContent);
  const exported = el("button", { type: "button", onclick: () => download(titles) }, "CSV");
  exported.setAttribute("aria-label", "Save the table as CSV");

  function download(header) {
    const lines = [header, ...[...table.tBodies[0].rows]
      .map((row) => [...row.cells].map((cell) => cell.textContent))];
    // A cell that a spreadsheet would run as a formula begins with an apostrophe.
    const quoted = (text) => `"${text.replace(/^(?=[=+@\t\r]|-(?![\d.]))/, "'").replace(/"/g, '""')}"`;
    const text = lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    el("a", { href: url, download: `${table.dataset.name || "table"}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  const tools = el("div", { class: "controls" },
    page.labelled("Filter", filter), unfold, exported, count);
  (table.closest(".scroll") || table).before(tools);
  update();
});
