"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cells = new Map(data.cells.map((cell) => [cell.id, cell]));
  const dialog = document.getElementById("detail");
  const body = document.getElementById("detail-body");

  // Everything that a file says goes in as text, never as markup.
  const make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "line", "rect", "text", "polyline", "circle", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
    node.append(...children.filter((child) => child != null));
    return node;
  };
  const percent = (share) => (share == null ? "-" : (100 * share).toFixed(1) + " %");
  const figure = (words, ...nodes) => make("figure", {}, ...nodes, make("figcaption", {}, words));
  const round = (most, parts) => {
    const raw = (most || 1) / parts, unit = 10 ** Math.floor(Math.log10(raw));
    return parts * unit * [1, 2, 2.5, 5, 10].find((digit) => digit * unit >= raw * 0.9999);
  };
  const swatch = (colour, words) => make("li", {}, make("i", { style: `background:${colour}` }), words);

  // A grid line at each of `parts` + 1 even heights from low to high; `unit` says what stands at one. A run that
  // pauses at rungs has a line at each, and a mark where it ended at one.
  function chart(lines, low, high, unit, label, parts = 4, w = 400, cell = {}) {
    const [h, left, top] = [190, 38, 8];
    const svg = make("svg", { viewBox: `0 0 ${w + left + 10} ${h + top + 34}`, role: "img", "aria-label": label });
    for (let i = 0; i <= parts; i++) {
      const value = low + ((high - low) * i) / parts, y = top + h * (1 - i / parts);
      svg.append(make("line", { x1: left, x2: left + w, y1: y, y2: y, class: "grid" }));
      svg.append(make("text", { x: left - 6, y: y + 4, "text-anchor": "end", class: "tick" }, unit(value)));
    }
    const epochs = Math.max(cell.epochs || 0, ...lines.map((line) => line.values.length));
    const x = (i) => left + (w * i) / Math.max(1, epochs - 1);
    const step = Math.max(1, Math.round(epochs / 6));
    for (let e = 1; e <= epochs; e += step)
      svg.append(make("text", { x: x(e - 1), y: top + h + 16, "text-anchor": "middle", class: "tick" }, String(e)));
    svg.append(make("text", { x: left + w / 2, y: top + h + 31, "text-anchor": "middle", class: "tick" }, "epoch"));
    for (const rung of cell.rungs || []) {
      svg.append(make("line", { x1: x(rung - 1), x2: x(rung - 1), y1: top, y2: top + h, class: "rung" }));
      svg.append(make("text", { x: x(rung - 1) + 4, y: top + h - 5, class: "tick" }, `rung ${rung}`));
    }
    for (const line of lines) {
      const points = line.values.map((v, i) => (v == null ? null : [x(i).toFixed(1), (top + h * (1 - (v - low) / (high - low || 1))).toFixed(1)])).filter(Boolean);
      // A line of one point would not be seen.
      if (points.length === 1) svg.append(make("circle", { cx: points[0][0], cy: points[0][1], r: 4, class: `point ${line.kind}` }));
      const end = points.at(-1);
      if (cell.ends && end) svg.append(make("circle", { cx: end[0], cy: end[1], r: 5, class: `ended ${line.kind}` }, make("title", {}, `${cell.ends} at this rung`)));
      svg.append(make("polyline", { points: points.map((point) => point.join()).join(" "), class: `line ${line.kind}`, "stroke-dasharray": line.dash }));
    }
    return svg;
  }

  function curves(cell) {
    const [loss, val, test] = cell.curves;
    if (!loss.length) return null;
    const known = loss.filter((v) => v != null), most = Math.max(...known), least = Math.min(0, ...known);
    const accuracy = chart([{ values: val, kind: "c1", dash: "5 3" }, { values: test, kind: "c0" }], 0, 1, (v) => String(Math.round(100 * v)), "validation and test accuracy over epochs", 4, 400, cell);
    return make("div", { class: "two" },
      figure("Accuracy after each epoch, percent" + (cell.rungs ? `; a dotted line at each rung${cell.ends ? `, a ring where the run ${cell.ends === "paused" ? "waits" : "was stopped"}` : ""}` : ""), accuracy, make("ul", { class: "legend" }, swatch("var(--c0)", "clean test"), swatch("var(--c1)", "validation (dashed)"))),
      figure("Training loss", chart([{ values: loss, kind: "c2" }], least, round(most, 4), (v) => String(Number(v.toPrecision(3))), "training loss over epochs", 4, 400, cell)));
  }

  // Terms may differ by orders of magnitude: a logarithmic axis where all are positive and a linear one hid some.
  function terms(cell) {
    if (!cell.terms) return null;
    const named = Object.entries(cell.terms), known = named.flatMap(([, values]) => values).filter((v) => v != null);
    if (!known.length) return null;
    const [least, most] = [Math.min(...known), Math.max(...known)], short = (v) => String(Number(v.toPrecision(3)));
    const logarithmic = least > 0 && most / least > 20;
    const lines = named.map(([, values], i) => ({ values: logarithmic ? values.map((v) => (v == null ? null : Math.log10(v))) : values, kind: `c${i % 8}`, dash: i < 8 ? null : "5 3" }));
    let [low, high, parts] = [least < 0 ? -round(-least, 4) : 0, most > 0 ? round(most, 4) : 0, 4];
    if (logarithmic) {
      low = Math.floor(Math.log10(least));
      const decades = Math.ceil(Math.log10(most)) - low, each = Math.ceil(decades / 6);
      parts = Math.ceil(decades / each);
      high = low + parts * each;
    }
    const power = (v) => (Math.abs(v) > 2 ? `1e${v}` : short(10 ** v));
    const drawn = chart(lines, low, high, logarithmic ? power : short, "loss terms over epochs", parts, 850);
    drawn.style.minWidth = "640px"; // on a phone it scrolls, so that its words stay readable
    const legend = named.map(([name, values], i) => swatch(`var(--c${i % 8})`, `${name} ${short(values.filter((v) => v != null).at(-1) ?? NaN)}${i < 8 ? "" : " (dashed)"}`));
    return figure(`Loss terms, unweighted means over an epoch${logarithmic ? ", logarithmic" : ""}; beside each name its last value.`, make("div", { class: "scroll" }, drawn), make("ul", { class: "legend" }, ...legend));
  }

  function selection(cell) {
    if (!cell.selection) return null;
    const [labelled, correct, wrong, caught] = cell.selection, names = data.pool[cell.classes], count = labelled.length;
    if (!count) return null;
    const most = round(Math.max(1, ...labelled, ...wrong), 2), slot = Math.max(7, 860 / count), h = 150, left = 40;
    const svg = make("svg", { viewBox: `0 0 ${left + slot * count + 4} ${h + 34}`, role: "img", "aria-label": "selection per class" });
    for (let i = 0; i <= 2; i++) {
      const y = 8 + h * (1 - i / 2);
      svg.append(make("line", { x1: left, x2: left + slot * count, y1: y, y2: y, class: "grid" }));
      svg.append(make("text", { x: left - 6, y: y + 4, "text-anchor": "end", class: "tick" }, String(Math.round((most * i) / 2))));
    }
    const bar = (x, value, style) => make("rect", { x, width: slot * 0.38, y: 8 + h * (1 - value / most), height: (h * value) / most, style });
    for (let k = 0; k < count; k++) {
      const x = left + k * slot;
      const group = [bar(x + slot * 0.1, labelled[k], "fill:var(--c0);opacity:.35"), bar(x + slot * 0.1, correct[k], "fill:var(--c0)"), bar(x + slot * 0.52, wrong[k], "fill:var(--c1);opacity:.35"), bar(x + slot * 0.52, caught[k], "fill:var(--c1)")];
      group[0].append(make("title", {}, `${names[k]}: ${labelled[k]} labelled, ${correct[k]} of them right; ${wrong[k]} wrong labels, ${caught[k]} of them caught`));
      svg.append(...group);
      if (count <= 40) svg.append(make("text", { x: x + slot / 2, y: h + 24, "text-anchor": "middle", class: "tick" }, String(names[k]).slice(0, Math.max(3, Math.floor(slot / 6)))));
    }
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    return figure(`Selection of the last epoch per class: ${sum(labelled)} labelled, ${sum(correct)} of them right; of ${sum(wrong)} wrong labels ${sum(caught)} caught (as in the paper's Fig. 2).`,
      make("div", { class: "scroll" }, svg),
      make("ul", { class: "legend" }, swatch("var(--c0)", "labelled and right"), swatch("color-mix(in srgb, var(--c0) 35%, transparent)", "labelled"), swatch("var(--c1)", "wrong label, caught"), swatch("color-mix(in srgb, var(--c1) 35%, transparent)", "wrong label")));
  }

  function confusion(cell) {
    const names = data.pool[cell.classes];
    if (cell.confused) {
      const rows = cell.confused.map(([count, k, seen]) => make("tr", {}, make("th", { scope: "row" }, String(names[k])), make("td", {}, String(names[seen])), make("td", {}, String(count))));
      const head = make("thead", {}, make("tr", {}, ...["true class", "taken for", "images"].map((word) => make("th", { scope: "col" }, word))));
      return make("div", { class: "scroll" }, make("table", {}, make("caption", {}, "What is confused most"), head, make("tbody", {}, ...rows)));
    }
    if (!cell.confusion) return null;
    const size = 30, left = 64, top = 34, count = cell.confusion.length;
    const svg = make("svg", { viewBox: `0 0 ${left + size * count + 4} ${top + size * count + 4}`, role: "img", "aria-label": "confusion matrix", style: `max-width:${left + size * count}px` });
    svg.append(make("text", { x: left + (size * count) / 2, y: 11, "text-anchor": "middle", class: "tick" }, "predicted class"));
    cell.confusion.forEach((line, k) => {
      const all = line.reduce((a, b) => a + b, 0) || 1;
      svg.append(make("text", { x: left - 6, y: top + k * size + 19, "text-anchor": "end", class: "tick" }, String(names[k]).slice(0, 9)));
      svg.append(make("text", { x: left + (k + 0.5) * size, y: top - 6, "text-anchor": "middle", class: "tick" }, String(names[k]).slice(0, 4)));
      line.forEach((value, seen) => {
        const x = left + seen * size, y = top + k * size;
        svg.append(make("rect", { x: x + 1, y: y + 1, width: size - 2, height: size - 2, rx: 3, style: `fill:var(--${seen === k ? "c0" : "c1"});opacity:${(0.06 + (0.6 * value) / all).toFixed(2)}` }));
        if (value) svg.append(make("text", { x: x + size / 2, y: y + 19, "text-anchor": "middle", style: "font-size:10.5px" }, String(value)));
      });
    });
    return figure("Confusion matrix: lines are true classes of the clean test images.", make("div", { class: "scroll" }, svg));
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

  function settings(cell) {
    const lines = [];
    for (const index of cell.config) {
      const [section, values] = data.pool[index];
      for (const [key, value] of Object.entries(values)) lines.push(`${section ? section + "." : ""}${key} = ${typeof value === "string" ? value : JSON.stringify(value)}`);
    }
    lines.push(`train.seed = ${cell.t[5]}`);
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

  function open(ids) {
    const known = ids.filter((id) => cells.has(id));
    if (!known.length) return;
    const show = (id) => {
      const cell = cells.get(id), [set, noise, defense, images, backbone, seed] = cell.t;
      document.getElementById("detail-title").textContent = `${defense} on ${images}, labels ${noise} (${set}, ${backbone}, seed ${seed})`;
      const choice = known.length < 2 ? null : make("div", { class: "choice" }, ...known.map((other) => {
        const button = make("button", { type: "button", class: "copy", "aria-pressed": String(other === id) }, `seed ${cells.get(other).t[5]}: ${percent(cells.get(other).acc[0])}`);
        button.addEventListener("click", () => show(other));
        return button;
      }));
      const failed = cell.error ? make("div", {}, make("p", { class: "error" }, cell.error), cell.tail ? make("pre", {}, cell.tail) : null) : null;
      const seen = confusion(cell);
      const parts = [choice, failed, curves(cell), terms(cell), selection(cell), seen ? make("div", { class: "two" }, seen, facts(cell)) : facts(cell), command(cell), settings(cell)];
      body.replaceChildren(...parts.filter(Boolean));
      history.replaceState(null, "", "#run-" + id);
    };
    show(known[0]);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  for (const node of document.querySelectorAll("[data-runs]")) {
    const ids = node.dataset.runs.trim().split(/\s+/);
    if (!ids.some((id) => cells.has(id))) continue;
    node.classList.add("opens");
    // Hundreds of curves and points would be as many stops of the Tab key; the list of runs has them all.
    if (!node.ownerSVGElement) node.tabIndex = 0;
    node.setAttribute("aria-haspopup", "dialog");
    node.addEventListener("click", (event) => { if (!event.target.closest("a")) open(ids); });
    node.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target === node) open(ids); });
  }
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));

  const lines = [...document.querySelectorAll("#list tbody tr")].map((line) => [line, [...line.children].map((field) => field.textContent.toLowerCase())]);
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [line, fields] of lines) {
      line.hidden = !words.every((word) => fields.some((field) => field.startsWith(word)));
      shown += line.hidden ? 0 : 1;
    }
    document.getElementById("shown").textContent = words.length ? `${shown} of ${lines.length}` : "";
  });
  const asked = location.hash.match(/^#run-(\w+)$/);
  if (asked) open([asked[1]]);
})();
