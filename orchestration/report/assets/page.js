"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cells = new Map(data.cells.map((cell) => [cell.id, cell]));
  const dialog = document.getElementById("detail");
  const body = document.getElementById("detail-body");

  // Everything that a file says goes in as text, never as markup.
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
    node.append(...children.filter((child) => child != null));
    return node;
  };
  const percent = (share) => (share == null ? "-" : (100 * share).toFixed(1) + " %");
  const hundred = (values) => values.map((value) => (value == null ? null : 100 * value));

  // A figure that is drawn once it stands in the page.
  let waiting = [];
  const figure = (caption, words, spec, least = 0) => {
    const drawing = make("div", { class: "drawing", role: "img", "aria-label": words, style: least ? `min-width:${least}px` : null });
    waiting.push([drawing, spec]);
    return make("figure", { class: "plot" }, make("div", { class: "scroll", ...(least ? { tabindex: 0, role: "region", "aria-label": "figure, scrolls sideways" } : {}) }, drawing), make("figcaption", {}, caption));
  };
  let drawn = [];
  const fill = async (...parts) => {
    drawn.forEach((view) => view?.finalize());
    drawn = [];
    body.replaceChildren(...parts.filter(Boolean));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    const now = waiting;
    waiting = [];
    for (const [node, spec] of now) drawn.push(await Figures.draw(node, spec));
    dialog.dataset.drawn = "";
  };

  function curves(cell) {
    const [loss, val, test] = cell.curves;
    if (!loss.length) return null;
    const more = { rungs: cell.rungs || [], ends: cell.ends };
    const accuracy = [{ kind: "clean test", values: hundred(test) }, { kind: "validation", values: hundred(val) }].filter(({ values }) => values.some((value) => value != null));
    return make("div", { class: "two" },
      figure("Accuracy after each epoch, percent" + (cell.rungs ? `; a dotted line at each rung${cell.ends ? `, a ring where the run ${cell.ends === "paused" ? "waits" : "was stopped"}` : ""}` : ""), "validation and test accuracy over epochs", Specs.lines(accuracy, "accuracy, %", { low: 0, high: 100, ...more })),
      figure("Training loss", "training loss over epochs", Specs.lines([{ kind: "training loss", values: loss }], "loss", more)));
  }

  // Terms may differ by orders of magnitude: a logarithmic axis where all are positive and a linear one hid some.
  function terms(cell) {
    if (!cell.terms) return null;
    const named = Object.entries(cell.terms), known = named.flatMap(([, values]) => values).filter((v) => v != null);
    if (!known.length) return null;
    const [least, most] = [Math.min(...known), Math.max(...known)], log = least > 0 && most / least > 20;
    const last = named.map(([name, values]) => `${name} ${Number((values.filter((v) => v != null).at(-1) ?? NaN).toPrecision(3))}`);
    return figure(`Loss terms, unweighted means over an epoch${log ? ", logarithmic" : ""}. At the end: ${last.join(", ")}.`, "loss terms over epochs", Specs.lines(named.map(([kind, values]) => ({ kind, values })), "loss term", { log }));
  }

  function selection(cell, least = null) {
    if (!cell.selection?.[0].length) return null;
    const [labelled, correct, wrong, caught] = cell.selection, names = data.pool[cell.classes].map(String);
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    return figure(`Selection of the last epoch per class: ${sum(labelled)} labelled, ${sum(correct)} of them right; of ${sum(wrong)} wrong labels ${sum(caught)} caught (as in the paper's Fig. 2).`, "selection per class", Specs.selection(cell.selection, names), least ?? Math.min(40 * labelled.length, 2400));
  }

  function confusion(cell, step = 30) {
    const names = data.pool[cell.classes];
    if (cell.confused) {
      const rows = cell.confused.map(([count, k, seen]) => make("tr", {}, make("th", { scope: "row" }, String(names[k])), make("td", {}, String(names[seen])), make("td", {}, String(count))));
      const head = make("thead", {}, make("tr", {}, ...["true class", "taken for", "images"].map((word) => make("th", { scope: "col" }, word))));
      return make("div", { class: "scroll" }, make("table", {}, make("caption", {}, "What is confused most"), head, make("tbody", {}, ...rows)));
    }
    if (!cell.confusion) return null;
    return figure("Confusion matrix: lines are true classes of the clean test images.", "confusion matrix", Specs.confusion(cell.confusion, names, step), 60 + step * names.length);
  }

  function facts(cell) {
    const environment = cell.env == null ? {} : data.pool[cell.env];
    const commit = environment.git_commit ? environment.git_commit.slice(0, 12) + (environment.git_dirty ? ", with changes" : "") : null;
    const [last, best] = cell.acc;
    const entries = [["test accuracy, last epoch", percent(last)], ["test accuracy, epoch best by validation", percent(best)], ["state", cell.state], ["promoted at epoch", cell.promoted], ["repeats trial", cell.confirms],
      ["training time", cell.seconds ? cell.seconds.toFixed(0) + " s" : null], ["peak memory", cell.mb ? cell.mb + " MB" : null], ["device", environment.device],
      ["share of wrong labels", cell.noise == null ? null : percent(cell.noise)], ...Object.entries(cell.numbers || {}).map(([name, value]) => [name + ", last reported", value]), ["crafted set, SHA-256", cell.sum], ["MLflow run", cell.run], ["cell", cell.id], ["git commit", commit], ["platform", environment.platform]];
    return make("dl", { class: "facts" }, ...entries.filter(([, words]) => words != null && words !== "").map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(words)))));
  }

  function configuration(cell) {
    const found = new Map();
    for (const index of cell.config) {
      const [section, values] = data.pool[index];
      for (const [key, value] of Object.entries(values)) found.set(`${section ? section + "." : ""}${key}`, typeof value === "string" ? value : JSON.stringify(value));
    }
    return found.set("train.seed", String(cell.t[5]));
  }

  function settings(cell) {
    const lines = [...configuration(cell)].map(([key, value]) => `${key} = ${value}`);
    const versions = cell.env == null ? [] : Object.entries(data.pool[cell.env].versions || {}).map(([name, version]) => `${name} ${version}`);
    return make("details", {}, make("summary", {}, "Resolved configuration and versions"), make("pre", {}, lines.join("\n")), versions.length ? make("pre", {}, versions.join("\n")) : null);
  }

  function command(cell) {
    const code = make("code", {}, cell.cmd), button = make("button", { type: "button", class: "copy" }, "copy");
    button.addEventListener("click", () => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      const done = () => { button.textContent = "copied"; };
      if (navigator.clipboard) navigator.clipboard.writeText(cell.cmd).then(done, () => { button.textContent = "selected"; });
      else button.textContent = "selected";
    });
    return make("div", {}, make("h3", {}, "The same run again"), make("div", { class: "command" }, code, button));
  }

  const title = document.getElementById("detail-title");

  function open(ids) {
    const known = ids.filter((id) => cells.has(id));
    if (!known.length) return;
    const show = (id) => {
      const cell = cells.get(id), [set, noise, defense, images, backbone, seed] = cell.t;
      title.textContent = `${defense} on ${images}, labels ${noise} (${set}, ${backbone}, seed ${seed})`;
      const choice = make("div", { class: "choice" }, ...(known.length < 2 ? [] : known.map((other) => {
        const button = make("button", { type: "button", class: "copy", "aria-pressed": String(other === id) }, `seed ${cells.get(other).t[5]}: ${percent(cells.get(other).acc[0])}`);
        button.addEventListener("click", () => show(other));
        return button;
      })));
      const pick = make("button", { type: "button", class: "copy" }, "compare with others");
      pick.addEventListener("click", () => { Compare.add(id); dialog.close(); });
      choice.append(pick);
      const failed = cell.error ? make("div", {}, make("p", { class: "error" }, cell.error), cell.tail ? make("pre", {}, cell.tail) : null) : null;
      const seen = confusion(cell);
      fill(choice, failed, curves(cell), terms(cell), selection(cell), seen ? make("div", { class: "two" }, seen, facts(cell)) : facts(cell), command(cell), settings(cell));
      history.replaceState(null, "", "#run-" + id);
    };
    show(known[0]);
  }

  // Two to four runs side by side: what they reached, the settings that differ, their curves, selection and confusion.
  function beside(ids) {
    const runs = ids.map((id) => cells.get(id)).filter(Boolean);
    const names = runs.map((cell) => `${cell.t[2]} on ${cell.t[3]}, ${cell.t[1]}, seed ${cell.t[5]} (run ${cell.n})`);
    title.textContent = `${runs.length} runs side by side`;
    const configs = runs.map(configuration), keys = [...new Set(configs.flatMap((config) => [...config.keys()]))];
    const differ = keys.filter((key) => new Set(configs.map((config) => config.get(key))).size > 1);
    const line = (head, values) => make("tr", {}, make("th", { scope: "row" }, head), ...values.map((value) => make("td", {}, value ?? "-")));
    const table = make("table", { class: "differ" }, make("caption", {}, differ.length ? `What they reached, and the ${differ.length} settings that differ` : "What they reached; no setting differs"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), ...names.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, line("test, last epoch", runs.map((cell) => percent(cell.acc[0]))), line("test, best by validation", runs.map((cell) => percent(cell.acc[1]))), line("state", runs.map((cell) => cell.state)), line("seconds", runs.map((cell) => cell.seconds?.toFixed(0))), ...differ.map((key) => line(key, configs.map((config) => config.get(key))))));
    const short = runs.map((cell) => `run ${cell.n}: ${cell.t[2]}`);
    const over = (place, of) => runs.map((cell, i) => ({ kind: short[i], of, values: place ? hundred(cell.curves[place]) : cell.curves[0] })).filter(({ values }) => values.some((value) => value != null));
    const both = [...over(2, "clean test"), ...over(1, "validation")];
    const parts = (part) => { const found = runs.map((cell, i) => [names[i], part(cell)]).filter(([, node]) => node); return found.length ? make("div", { class: "beside" }, ...found.map(([name, node]) => make("div", {}, make("h4", {}, name), node))) : null; };
    const heading = (words, node) => (node ? make("div", {}, make("h3", {}, words), node) : null);
    fill(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "settings that differ" }, table),
      both.length ? figure("Accuracy after each epoch, percent; a colour for each run, clean test in full lines and validation dashed.", "accuracy of the runs over epochs", Specs.lines(both, "accuracy, %", { low: 0, high: 100, height: 240 })) : null,
      over(0, "").length ? figure("Training loss.", "training loss of the runs over epochs", Specs.lines(over(0, ""), "loss")) : null,
      heading("Selection", parts((cell) => selection(cell, 0))), heading("Confusion", parts((cell) => confusion(cell, 22))));
    history.replaceState(null, "", "#compare-" + runs.map((cell) => cell.id).join(","));
  }

  // The runs that were picked for a comparison, at most four, and the bar that says so.
  const Compare = (() => {
    const bar = document.getElementById("compare"), go = document.getElementById("compare-open"), picked = new Set(), most = 4;
    const boxes = new Map();
    function shown() {
      bar.hidden = !picked.size;
      go.disabled = picked.size < 2;
      bar.querySelector("span").textContent = picked.size < 2 ? "1 run; choose up to three more" : `${picked.size} runs`;
      for (const [id, box] of boxes) { box.checked = picked.has(id); box.disabled = picked.size >= most && !picked.has(id); }
    }
    const add = (id) => { if (picked.size < most) picked.add(id); shown(); };
    for (const head of document.querySelectorAll("#list tbody th[data-runs]")) {
      const id = head.dataset.runs.trim();
      if (!cells.has(id)) continue;
      const box = make("input", { type: "checkbox", class: "pick", "aria-label": `compare run ${head.textContent.trim()}` });
      box.addEventListener("change", () => { picked[box.checked ? "add" : "delete"](id); shown(); });
      boxes.set(id, box);
      head.prepend(box);
    }
    go.addEventListener("click", () => beside([...picked]));
    document.getElementById("compare-none").addEventListener("click", () => { picked.clear(); shown(); });
    return { add };
  })();

  for (const node of document.querySelectorAll("[data-runs]")) {
    const ids = node.dataset.runs.trim().split(/\s+/);
    if (!ids.some((id) => cells.has(id))) continue;
    node.classList.add("opens");
    node.tabIndex = 0;
    node.setAttribute("aria-haspopup", "dialog");
    node.addEventListener("click", (event) => { if (!event.target.closest("a, input")) open(ids); });
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.target !== node) return;
      event.preventDefault(); // or the same key would press the button of the dialog that has the focus then, and close it
      open(ids);
    });
  }
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));

  Figures.open(open);
  const asked = location.hash.match(/^#run-([\w-]+)$/);
  if (asked) open([asked[1]]);
  const several = location.hash.match(/^#compare-([\w,-]+)$/);
  if (several) beside(several[1].split(",").slice(0, 4));
  Figures.all();
})();
