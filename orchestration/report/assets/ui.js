"use strict";
(() => {
  const studies = new Map(), trials = new Map(), sections = new Map();
  const at = (id) => document.getElementById(id);

  // Everything that the server says goes in as text, never as markup.
  const make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "line", "text", "polyline", "circle", "title", "g"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
    node.append(...children.filter((child) => child != null && child !== ""));
    return node;
  };
  const share = (value) => (value == null ? "-" : value.toFixed(3));
  const time = (seconds) => {
    if (seconds == null) return null;
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    return whole < 3600 ? `${Math.floor(whole / 60)}:${two(whole % 60)}` : `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  };
  const date = (seconds) => (seconds == null ? "" : new Date(1000 * seconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }));
  const css = (state) => "s-" + state.replace(" ", "-");
  const counted = (study) => Object.entries(study.counts).map(([state, count]) => `${count} ${state}`).join(", ");
  const page = (name) => "/studies/" + encodeURIComponent(name);

  // --- all studies ---

  const list = at("list").tBodies[0];

  function line(study) {
    let row = [...list.children].find((each) => each.dataset.study === study.name);
    if (!row) {
      row = make("tr", { "data-study": study.name });
      list.prepend(row);
      at("none").hidden = true;
    }
    const left = (...words) => make("td", { class: "left" }, ...words);
    const name = make("th", { scope: "row" }, make("a", { href: page(study.name) }, study.name));
    if (study.note) return row.replaceChildren(name, make("td", { class: "left error", colspan: "6" }, study.note));
    row.replaceChildren(name, left(study.kind), left(`${study.preset}, ${study.data}`),
      left(study.running ? make("b", { class: "t-running" }, "running: ") : null, `${study.ended}/${study.total}`, ` (${counted(study)})`),
      make("td", {}, share(study.best_val)), left(date(study.began)), left(make("a", { href: "/mlflow/" + encodeURIComponent(study.name), "aria-label": `${study.name} in MLflow` }, "MLflow")));
  }

  // --- a study that runs, or ran while this page was open ---

  function section(study) {
    if (sections.has(study.name)) return sections.get(study.name);
    const parts = { bar: make("div", { class: "progress", role: "img" }), states: make("p", { class: "states" }), now: make("p", { class: "now" }), note: make("p"), slots: make("ul", { class: "slots" }),
      curves: make("div", { class: "live-curves" }), legend: make("ul", { class: "legend" }), failures: make("div", { class: "failures" }), failed: make("h3", { hidden: "" }, "Last words of the failed") };
    const heading = `study-${sections.size}`;
    parts.root = make("section", { class: "study", "data-study": study.name, "aria-labelledby": heading },
      make("div", { class: "head" }, make("h2", { id: heading }, make("a", { href: page(study.name) }, study.name)),
        make("div", { class: "links" }, make("a", { href: page(study.name), "aria-label": `page of ${study.name}` }, "its page"), make("a", { href: "/mlflow/" + encodeURIComponent(study.name), "aria-label": `runs of ${study.name} in MLflow` }, "its runs in MLflow"))),
      make("p", { class: "about" }, [study.about, study.preset, study.data].filter(Boolean).join(" · ")), parts.bar, parts.states, parts.now, parts.note, parts.slots,
      make("h3", {}, "Validation accuracy after each epoch"), parts.curves, parts.legend, parts.failed, parts.failures);
    sections.set(study.name, parts);
    at("running").prepend(parts.root);
    at("nothing").hidden = true;
    new ResizeObserver(() => curves(study.name)).observe(parts.curves);
    return parts;
  }

  const known = (name) => [...(trials.get(name) || new Map()).values()];

  function show(study) {
    const parts = section(study), all = known(study.name), running = all.filter((trial) => trial.status === "running");
    parts.bar.setAttribute("aria-label", counted(study));
    parts.bar.replaceChildren(...Object.entries(study.counts).map(([state, count]) => make("span", { class: css(state), style: `flex-grow:${count}` })));
    parts.states.replaceChildren(...Object.entries(study.counts).map(([state, count]) => make("span", { class: "state " + css(state) }, `${count} ${state}`)), `of ${study.total}`);
    const best = study.best == null ? null : `best val ${study.best_words || share(study.best_val)} (trial ${study.best})`;
    const head = study.running ? (study.left == null ? "time left not known yet" : `${time(study.left)} left`) : "ended";
    parts.now.textContent = [`${study.ended}/${study.total} trials`, head, best].filter(Boolean).join(" · ");
    const at_most = study.slots > running.length ? `, ${study.slots} at most so far` : "";
    const out = Object.entries(study.out).map(([where, why]) => `excluded: ${where}, because ${why}`);
    parts.note.textContent = [!study.running ? "" : running.length ? `${running.length} side by side${at_most}.` : "Nothing trains at this moment: Ray starts, sets are crafted, or results are written.", ...out].filter(Boolean).join(" ");
    parts.slots.replaceChildren(...running.map(slot));
    for (const trial of all.filter((each) => each.status === "failed")) failure(parts, trial);
    curves(study.name);
  }

  function slot(trial) {
    const far = trial.epochs ? trial.epoch / trial.epochs : 0, left = time(trial.left);
    return make("li", { class: "slot", "data-trial": trial.number },
      make("p", {}, make("span", { class: "no" }, `trial ${trial.number}`), ` ${trial.settings}`),
      make("div", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width:${(100 * far).toFixed(1)}%` })),
      make("p", { class: "far" }, `epoch ${trial.epoch}/${trial.epochs || "?"} · val ${share(trial.val)}${left ? ` · ${left} left` : ""}`),
      trial.where ? make("p", { class: "where" }, trial.where) : null, trial.quiet == null ? null : make("p", { class: "quiet" }, `not heard of for ${time(trial.quiet)}`));
  }

  function failure(parts, trial) {
    if ([...parts.failures.children].some((each) => each.dataset.trial === trial.number)) return;
    parts.failed.hidden = false;
    parts.failures.append(make("details", { "data-trial": trial.number }, make("summary", {}, `trial ${trial.number} (${trial.settings}): `, make("span", { class: "error" }, trial.error)), make("pre", { tabindex: "0", role: "region", "aria-label": `last words of trial ${trial.number}` }, trial.words || trial.error)));
  }

  // Drawn in the pixels of the page, so that words keep their size on a phone.
  function curves(name) {
    const { curves: place, legend } = sections.get(name), study = studies.get(name);
    const drawn = known(name).filter((trial) => trial.curve.length), width = place.clientWidth;
    if (!width) return;
    if (!drawn.length) {
      legend.replaceChildren();
      return place.replaceChildren(make("p", { class: "hint" }, "No epoch has ended yet."));
    }
    const [left, right, top, height] = [40, 44, 8, 170], wide = width - left - right;
    const epochs = Math.max(...drawn.map((trial) => Math.max(trial.epochs, trial.curve.length))), values = drawn.flatMap((trial) => trial.curve);
    const [least, most] = [Math.min(...values), Math.max(...values)], each = most - least > 0.4 ? 0.2 : 0.1;
    const low = Math.max(0, Math.floor(least / each + 1e-9) * each), parts = Math.max(1, Math.ceil((most - low) / each - 1e-9)), high = low + parts * each;
    const x = (epoch) => left + (wide * (epoch - 1)) / Math.max(1, epochs - 1), y = (value) => top + height * (1 - (value - low) / (high - low || 1));
    const svg = make("svg", { viewBox: `0 0 ${width} ${top + height + 40}`, width, height: top + height + 40, role: "img", "aria-label": `validation accuracy of ${drawn.length} trials of ${name} after each epoch` });
    for (let i = 0; i <= parts; i++) {
      const value = low + each * i;
      svg.append(make("line", { x1: left, x2: left + wide, y1: y(value), y2: y(value), class: "grid" }), make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "tick" }, value.toFixed(1)));
    }
    const step = Math.max(1, Math.ceil(epochs / Math.max(2, Math.floor(wide / 60))));
    for (let epoch = 1; epoch <= epochs; epoch += step) svg.append(make("text", { x: x(epoch), y: top + height + 17, "text-anchor": "middle", class: "tick" }, String(epoch)));
    svg.append(make("text", { x: left + wide / 2, y: top + height + 34, "text-anchor": "middle", class: "tick" }, "epoch"));
    const kind = (trial) => (trial.number === study.best ? "leads" : trial.status);
    const order = ["queued", "stopped", "failed", "paused", "done", "running", "leads"], taken = [];
    for (const trial of [...drawn].sort((a, b) => order.indexOf(kind(a)) - order.indexOf(kind(b)))) {
      const last = trial.curve.at(-1), end = [x(trial.curve.length), y(last)];
      const group = make("g", { "data-trial": trial.number }, make("title", {}, `trial ${trial.number}, ${trial.state}, ${trial.settings}: ${share(last)} after epoch ${trial.curve.length}, best ${share(trial.best)}`),
        make("polyline", { points: trial.curve.map((value, i) => `${x(i + 1).toFixed(1)},${y(value).toFixed(1)}`).join(" "), class: `line ${kind(trial)}` }), make("circle", { cx: end[0], cy: end[1], r: 4, class: `tip ${kind(trial)}` }));
      if (["running", "leads"].includes(kind(trial)) && taken.every((other) => Math.hypot(other[0] - end[0], other[1] - end[1]) > 16)) {
        taken.push(end);
        group.append(make("text", { x: end[0] + 8, y: end[1] + 4, class: "label" }, trial.number.split(",")[0]));
      }
      svg.append(group);
    }
    place.replaceChildren(svg);
    const kinds = order.filter((each) => drawn.some((trial) => kind(trial) === each)).reverse();
    legend.replaceChildren(...kinds.map((each) => make("li", {}, make("i", { class: "swatch " + each }), { queued: "waits", leads: "best" }[each] || each)));
  }

  // --- what comes in ---

  const said = [];
  const tell = (words) => {
    said.push(words);
    at("told").textContent = said.slice(-3).join(". ");
  };

  function take(news) {
    if (news.trouble) return lost(news.trouble, true);
    if (news.mlflow) at("mlflow").textContent = news.mlflow.trouble ? `MLflow: ${news.mlflow.trouble}` : news.mlflow.url ? "" : "MLflow is starting.";
    if (news.all) trials.clear();
    const touched = new Set([...Object.keys(news.studies || {}), ...Object.keys(news.trials || {})]);
    for (const [name, changed] of Object.entries(news.trials || {})) {
      const now = trials.get(name) || trials.set(name, new Map()).get(name);
      for (const [number, trial] of Object.entries(changed)) {
        const before = now.get(number);
        if (before && before.status !== trial.status) tell(`${name}: trial ${trial.number} ${trial.state}`);
        now.set(number, trial);
      }
    }
    // The newest study comes first, and a line that is new goes on top.
    for (const [name, study] of Object.entries(news.studies || {}).reverse()) {
      const before = studies.get(name);
      if (before && before.running !== study.running) tell(`${name} ${study.running ? "runs" : "has ended"}`);
      studies.set(name, study);
      line(study);
    }
    for (const name of touched) if (trials.has(name) && studies.has(name)) show(studies.get(name));
  }

  const connected = (words, kind) => at("link").replaceChildren(make("span", { class: kind }, words));
  function lost(words, over) {
    connected(words, "lost");
    if (over) source.close();
  }
  const source = new EventSource("/events");
  source.onopen = () => connected("live: what changes is shown by itself", "live");
  source.onerror = () => lost("the connection is lost; trying again. Is `python orchestrate.py ui` still running?");
  source.onmessage = (event) => take(JSON.parse(event.data));
})();
