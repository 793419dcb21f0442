"use strict";
// Sorts the tables by a column and filters the list of runs.
(() => {
  // What a field is sorted by: a number, minutes as seconds, or its words; what has none comes last.
  function key(field) {
    const words = field.textContent.replace(/^[★◆\s]+/, "").trim();
    const time = words.match(/^(?:(\d+):)?(\d+):(\d\d)$/);
    if (time) return 3600 * (time[1] || 0) + 60 * time[2] + Number(time[3]);
    if (!words || words === "-") return null;
    const number = parseFloat(words);
    return Number.isNaN(number) ? words.toLowerCase() : number;
  }
  function before(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0;
  }
  for (const table of document.querySelectorAll("#list, #trials table, table.matrix")) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const lines = [...table.tBodies[0].rows], keys = new Map(lines.map((line) => [line, key(line.cells[place])]));
        // Numbers begin with the largest, words with the first.
        const up = head.ariaSort ? head.ariaSort === "descending" : lines.some((line) => typeof keys.get(line) === "string");
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const sign = up ? 1 : -1, missing = (line) => keys.get(line) === null;
        lines.sort((a, b) => (missing(a) || missing(b) ? before(keys.get(a), keys.get(b)) : sign * before(keys.get(a), keys.get(b))));
        table.tBodies[0].append(...lines);
      });
    });
  }

  // A table with a thousand lines takes long to lay out, so a filter shows the first ones.
  const most = 400;
  const lines = [...document.querySelectorAll("#list tbody tr")].map((line) => [line, [...line.children].map((field) => field.textContent.toLowerCase())]);
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [line, fields] of lines) {
      const fits = words.every((word) => fields.some((field) => field.startsWith(word)));
      shown += fits ? 1 : 0;
      line.hidden = !fits || (words.length > 0 && shown > most);
    }
    document.getElementById("shown").textContent = words.length ? `${shown} of ${lines.length}${shown > most ? `, the first ${most} shown` : ""}` : "";
  });
})();
