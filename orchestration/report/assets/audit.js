"use strict";
(() => {
  const given = document.getElementById("given");
  if (!given) return;
  const cards = [...document.querySelectorAll(".card[data-given]")];
  const shown = document.getElementById("shown"), undecided = document.getElementById("undecided");
  const show = () => {
    for (const card of cards) card.hidden = (given.value !== "" && card.dataset.given !== given.value) || (undecided.checked && "decided" in card.dataset);
    shown.textContent = `${cards.filter((card) => !card.hidden).length} shown`;
  };
  given.addEventListener("change", show);
  undecided.addEventListener("change", show);
  show();

  // --- the review of the worst labels ---

  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.lines) return;
  document.getElementById("review").hidden = document.getElementById("open-only").hidden = false;
  const said = document.getElementById("decided"), words = { keep: "keep", relabel: "relabel", drop: "drop" };
  const decisions = read(); // line of the list -> ["keep"], ["relabel", label] or ["drop"]

  function read() {
    try {
      return new Map(Object.entries(JSON.parse(localStorage.getItem(data.key) || "{}")));
    } catch {
      return new Map(); // what is stored is damaged, or this browser stores nothing
    }
  }

  function save() {
    let kept = "";
    try {
      if (decisions.size) localStorage.setItem(data.key, JSON.stringify(Object.fromEntries(decisions)));
      else localStorage.removeItem(data.key);
    } catch {
      kept = "; this browser does not keep them, so download the list before you leave";
    }
    const count = cards.filter((card) => "decided" in card.dataset).length;
    said.textContent = `${count} of ${cards.length} decided${count ? kept : ""}`;
  }

  const mark = (card, line) => {
    const [how, label] = decisions.get(String(line)) || [];
    if (how) card.dataset.decided = how;
    else delete card.dataset.decided;
    for (const button of card.querySelectorAll(".decide button")) button.setAttribute("aria-pressed", String(button.dataset.how === how));
    if (label) card.querySelector("select").value = label;
  };

  const choose = (card) => {
    for (const other of cards) {
      other.tabIndex = other === card ? 0 : -1;
      for (const control of other.querySelectorAll("button, select")) control.tabIndex = other.tabIndex;
    }
  };
  const move = (card, steps) => {
    const visible = cards.filter((each) => !each.hidden), to = visible[Math.min(visible.length - 1, Math.max(0, visible.indexOf(card) + steps))];
    if (!to) return;
    choose(to);
    to.focus();
  };
  const decide = (card, how) => {
    const line = data.cards[cards.indexOf(card)], label = card.querySelector("select").value;
    // A label that is the given one is no other label.
    if (how === "undo") decisions.delete(String(line));
    else decisions.set(String(line), how !== "relabel" ? [how] : label === card.dataset.given ? ["keep"] : [how, label]);
    mark(card, line);
    save();
  };

  cards.forEach((card, number) => {
    const name = card.querySelector(".name").textContent, select = document.createElement("select");
    select.setAttribute("aria-label", `new label of ${name}`);
    select.append(...data.classes.map((label) => new Option(label)));
    select.value = card.dataset.suggested;
    select.addEventListener("change", () => decide(card, "relabel"));
    const buttons = Object.entries(words).map(([how, word]) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: word });
      button.dataset.how = how;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => { choose(card); decide(card, how); });
      return button;
    });
    const group = document.createElement("div");
    group.className = "decide";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `decision on ${name}`);
    group.append(...buttons, select);
    card.append(group);
    card.addEventListener("focusin", () => choose(card));
    mark(card, data.cards[number]);
  });
  choose(cards[0]);
  save();

  const list = document.getElementById("worst");
  list.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const across = Math.max(1, getComputedStyle(list).gridTemplateColumns.split(" ").length);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -cards.length, End: cards.length }[event.key];
    const how = { k: "keep", r: "relabel", d: "drop", u: "undo" }[event.key.toLowerCase()];
    if (steps == null && how == null) return;
    event.preventDefault();
    if (how) decide(card, how);
    move(card, steps ?? (how === "undo" ? 0 : 1));
    if (how) show();
  });

  // As erat/data/spreadsheets.py: a cell that a spreadsheet would take for a formula gets an apostrophe, which reading drops.
  const formula = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/, number = /^[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$/;
  const cell = (text) => {
    const doubtful = text[0] === "'" && (formula.test(text.slice(1)) || text[1] === "'");
    const safe = !number.test(text) && (formula.test(text) || doubtful) ? "'" + text : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  function reviewed() {
    const rows = [["path", "label", "part", "status", "given", "reviewed"]];
    data.lines.forEach(([folder, name, ...rest], line) => {
      let [label, part, status, was] = rest.map((place) => data.words[place]);
      const [how, to] = decisions.get(String(line)) || [];
      if (how) [label, status] = { keep: [was, "kept"], relabel: [to, "relabelled"], drop: [was, "dropped"] }[how];
      if (status !== "dropped") rows.push([(folder < 0 ? "" : data.words[folder]) + name, label, part, status, was, how ? "1" : "0"]);
    });
    return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
  }
  document.getElementById("export").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([reviewed()], { type: "text/csv" }));
    link.download = "reviewed.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    save();
    said.textContent += "; reviewed.csv is downloaded";
  });
  document.getElementById("forget").addEventListener("click", () => {
    if (!decisions.size || !confirm("Forget all decisions of this review?")) return;
    decisions.clear();
    cards.forEach((card, place) => mark(card, data.cards[place]));
    save();
    show();
  });
})();
