"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const dialog = find("detail");

  // Everything that a file says goes in as text, never as markup.
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
    node.append(...children.filter((child) => child != null));
    return node;
  };

  // --- which rankings and lines are shown ---------------------------------------------------------------------------
  const rankings = [...document.querySelectorAll(".ranking")].map((node) => ({
    node,
    board: node.closest(".board")?.dataset.board,
    images: node.dataset.images,
    labels: node.dataset.labels,
    lines: [...node.querySelectorAll("tbody tr")].map((line) => [line, line.firstElementChild.textContent.toLowerCase()]),
  }));
  const asked = { board: find("of-board"), images: find("of-images"), labels: find("of-labels") };
  const defense = find("of-defense");
  const total = document.querySelectorAll(".rank tbody tr").length;

  function filter() {
    const words = defense.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { node, lines, ...place } of rankings) {
      // The paper's tables have all data corruptions as columns, and no board.
      const fits = Object.entries(asked).every(([key, { value }]) => !value || place[key] === undefined || place[key] === value);
      let kept = 0;
      for (const [line, name] of lines) {
        line.hidden = !words.every((word) => name.includes(word));
        kept += line.hidden ? 0 : 1;
      }
      node.hidden = !fits || !kept;
      if (!node.hidden && place.board) shown += kept;
    }
    for (const board of document.querySelectorAll(".board")) board.hidden = !board.querySelector(".ranking:not([hidden])");
    const narrowed = words.length || Object.values(asked).some((select) => select.value);
    find("shown").textContent = narrowed ? `${shown} of ${total} lines` : "";
  }
  for (const select of Object.values(asked)) select.addEventListener("change", filter);
  defense.addEventListener("input", filter);
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").hidden = false;

  // --- the order of the lines, within each ranking ------------------------------------------------------------------
  const number = (cell) => {
    const text = (cell.querySelector(".main") || cell).textContent.trim();
    const time = text.match(/^(?:(\d+):)?(\d+):(\d\d)$/);
    if (time) return 3600 * Number(time[1] || 0) + 60 * Number(time[2]) + Number(time[3]);
    return /^\d/.test(text) ? parseFloat(text) : NaN;
  };
  const falls = (name) => !["defense", "#", "time", "method"].includes(name); // what is best when it is large
  const heads = [...document.querySelectorAll(".rank thead th, .overall thead th, .paper-table thead th")];

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const keys = [...body.rows].map((row) => [row, column ? number(row.cells[column]) : row.cells[0].textContent]);
    keys.sort(([, a], [, b]) => {
      if (!column) return (descending ? -1 : 1) * a.localeCompare(b);
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing comes last
      return descending ? b - a : a - b;
    });
    body.append(...keys.map(([row]) => row));
  }

  for (const head of heads) {
    const name = head.textContent, kind = head.closest("table").className;
    const button = make("button", { type: "button", class: "sort" }, name);
    head.replaceChildren(button);
    if (name === "#") head.setAttribute("aria-sort", "ascending");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const descending = now ? now === "ascending" : falls(name);
      // All rankings are sorted alike; a table of the paper has columns of its own.
      const alike = kind === "rank" ? heads.filter((other) => other.closest("table").className === kind) : [...head.parentElement.children];
      for (const other of alike) other.removeAttribute("aria-sort");
      for (const other of kind === "rank" ? alike : [head]) {
        if (other.textContent !== name) continue;
        other.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(other.closest("table"), other.cellIndex, descending);
      }
    });
  }

  // --- what a line opens --------------------------------------------------------------------------------------------
  function open(id) {
    const line = data[id], words = (value) => (value == null ? "-" : String(value));
    const table = make("table", {},
      make("caption", {}, "Runs: clean test accuracy in percent"),
      make("thead", {}, make("tr", {}, ...["seed", "draw", "last epoch", "best by val.", "seconds", "MB", "run", "study"].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...line.runs.map(([draw, seed, last, best, seconds, memory, cell, study]) => make("tr", {}, make("th", { scope: "row" }, words(seed)), ...[draw, last, best, seconds, memory || "-", cell, study].map((value) => make("td", {}, words(value)))))));
    const code = make("pre", { class: "commands", tabindex: "0" }, line.commands.join("\n"));
    const button = make("button", { type: "button", class: "copy" }, "copy");
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(code);
      if (!navigator.clipboard) button.textContent = "selected";
      else navigator.clipboard.writeText(line.commands.join("\n")).then(() => { button.textContent = "copied"; }, () => { button.textContent = "selected"; });
    });
    const again = line.commands.length ? [code, button] : [make("p", {}, "This version cannot make the configuration from its preset.")];
    const options = Object.entries(line.options).map(([key, value]) => `${key} = ${typeof value === "string" ? value : JSON.stringify(value)}`);
    const facts = [["board", line.board], ["trained on", line.devices.join(", ")], ["chosen by validation in", line.chosen.join(", ")]].filter(([, value]) => value);
    find("detail-title").textContent = line.title;
    find("detail-body").replaceChildren(
      make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "runs" }, table),
      make("h3", {}, line.commands.length > 1 ? "The same runs again" : "The same run again"), ...again,
      make("details", {}, make("summary", {}, "All options of the defense"), make("pre", {}, options.join("\n"))));
    dialog.showModal();
    dialog.scrollTop = 0;
  }
  for (const node of document.querySelectorAll("[data-runs]")) {
    const name = (node.querySelector(".main") || node).firstChild; // the text before footnotes
    const button = make("button", { type: "button", class: "line", "aria-haspopup": "dialog" }, name.textContent);
    button.addEventListener("click", () => open(node.dataset.runs));
    name.replaceWith(button);
  }
  find("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
})();
