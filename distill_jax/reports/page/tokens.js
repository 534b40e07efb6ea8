// A text token by token, coloured by how far the student is from the teacher, with the five tokens
// that each of them finds likeliest at the one under the pointer or the keyboard.
//
// data: {rows: [[{text, begin, nll, top: [[text, p], ...], teacher_nll, teacher_top, kl}]]}.
"use strict";

page.define("tokens", (root, data) => {
  const { el, number, percent } = page;
  const teacher = data.rows.some((row) => row.some((token) => token.teacher_top));
  const measures = [
    ...(teacher ? [["kl", "KL(teacher ‖ student), nats"]] : []),
    ["nll", "Loss of the student, nats"],
    ...(teacher ? [["teacher_nll", "Loss of the teacher, nats"]] : []),
  ];
  const state = { row: 0, measure: measures[0][0], at: 0 };
  const text = el("div", { class: "tokens", role: "listbox", tabindex: "0", id: page.newId("tokens"),
    "aria-label": "Tokens; arrow keys move" });
  const detail = el("div", { class: "token-detail" });
  const live = el("p", { class: "visually-hidden", role: "status" });
  const scale = el("p", { class: "note" });
  const visible = (piece) => piece.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "∅";

  function strength(token, most) {
    const value = token[state.measure];
    return value == null ? 0 : Math.min(value / most, 1) ** 0.6 * 45;
  }

  function draw() {
    const tokens = data.rows[state.row];
    const values = tokens.map((t) => t[state.measure]).filter((v) => v != null).sort((a, b) => a - b);
    // The colour is full from the 98th percentile on, so that one token does not hide all others.
    const most = Math.max(values[Math.floor(0.98 * (values.length - 1))] || 0, 1e-9);
    scale.textContent = `Full colour from ${number(most, 3)} nats on; uncoloured tokens have no loss.`;
    const parts = tokens.map((token, i) => {
      const span = el("span", { role: "option", id: `${text.id}-${i}`, "aria-selected": "false",
        class: token.begin ? "token begin" : "token" }, token.text.replace(/\n/g, "⏎\n"));
      const share = strength(token, most);
      if (share) {
        span.style.background = `color-mix(in srgb, var(--series-2) ${share.toFixed(1)}%, transparent)`;
      }
      span.addEventListener("pointerenter", () => go(i));
      span.addEventListener("click", () => go(i));
      return span;
    });
    text.replaceChildren(...parts);
    go(Math.max(tokens.findIndex((token) => token.top), 0), true);
  }

  function go(at, quiet) {
    const tokens = data.rows[state.row];
    text.children[state.at]?.setAttribute("aria-selected", "false");
    state.at = Math.min(Math.max(at, 0), tokens.length - 1);
    const span = text.children[state.at];
    if (!span) return;
    span.setAttribute("aria-selected", "true");
    text.setAttribute("aria-activedescendant", span.id);
    const token = tokens[state.at];
    const figures = measures.filter(([key]) => token[key] != null)
      .map(([key, title]) => `${title}: ${number(token[key], 3)}`).join(" · ");
    detail.replaceChildren(
      el("p", null, el("b", { class: "piece" }, visible(token.text)), " ",
        figures || "not predicted: no loss here"),
      el("div", { class: "networks" },
        token.teacher_top ? likeliest("Teacher", token.teacher_top, token.text) : null,
        token.top ? likeliest("Student", token.top, token.text) : null));
    if (!quiet) {
      const first = (top) => (top ? `${visible(top[0][0])} ${percent(top[0][1])}` : "");
      live.textContent = `${visible(token.text)}. ${figures}. ` +
        (token.teacher_top ? `Teacher: ${first(token.teacher_top)}. ` : "") +
        (token.top ? `Student: ${first(token.top)}` : "");
    }
  }

  function likeliest(title, top, target) {
    return el("table", { class: "bars" },
      el("caption", null, el("b", null, title), " finds likeliest"),
      el("tbody", null, top.map(([piece, p]) => {
        const bar = el("span", { class: "bar" });
        bar.style.width = `${100 * p}%`;
        return el("tr", { class: piece === target ? "truth" : null },
          el("th", { scope: "row", class: "piece" }, visible(piece)),
          el("td", { class: "track", "aria-hidden": "true" }, bar),
          el("td", { class: "number" }, percent(p)));
      })));
  }

  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 20, PageUp: -20 };
    const ends = { Home: 0, End: data.rows[state.row].length - 1 };
    if (event.key in step) go(state.at + step[event.key]);
    else if (event.key in ends) go(ends[event.key]);
    else return;
    event.preventDefault();
    text.children[state.at].scrollIntoView({ block: "nearest" });
  });
  const row = page.select(data.rows.map((tokens, i) => [i, `Row ${i + 1}, ${tokens.length} tokens`]),
    (event) => { state.row = Number(event.target.value); draw(); });
  const measure = page.select(measures, (event) => { state.measure = event.target.value; draw(); });
  root.append(
    el("div", { class: "controls" }, page.labelled("Row", row), page.labelled("Colour", measure)),
    scale, text, detail, live);
  draw();
});
