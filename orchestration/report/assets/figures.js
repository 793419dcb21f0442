"use strict";
// Draws Vega-Lite specifications: those of the page one after another while nothing else is to be done, and those that
// the details of a run make. The library is unpacked when the first one is drawn.
const Figures = (() => {
  const { config, figures, palette } = JSON.parse(document.getElementById("drawings").textContent);
  const tip = document.getElementById("tip");
  const touch = matchMedia("(pointer: coarse)").matches;
  const views = new Map();
  let unpacked, opened = () => {};

  const library = () => (unpacked ??= (async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("library").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  })());

  // Titles and values go in as text, never as markup.
  function tell(event, value, runs) {
    tip.hidden = !value || typeof value !== "object";
    if (tip.hidden) return;
    const list = document.createElement("dl");
    for (const [title, words] of Object.entries(value)) {
      if (words === "null") continue;
      const [term, of] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, of.textContent] = [title, words];
      list.append(term, of);
    }
    tip.replaceChildren(list, ...(runs ? ["click: its run"] : []));
    const [x, y] = [event.clientX + 14, event.clientY + 14];
    tip.style.left = Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (y + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : y) + "px";
  }

  // Without a wheel a drag scrolls the page; it does not move what the figure shows.
  function still(spec) {
    if (spec.params) spec.params = spec.params.filter((param) => param.name !== "zoom");
    for (const part of spec.layer || []) still(part);
  }

  // The number of letters of the longest entry of a legend.
  const longest = (spec) => Math.max(1, ...(spec.encoding?.color?.scale?.domain ?? []).map((entry) => String(entry).length), ...(spec.layer || []).map(longest));

  async function draw(node, given) {
    await library();
    if (!node.isConnected) return null;
    const spec = structuredClone(given);
    if (touch) still(spec);
    const columns = { signal: `max(1, min(4, floor(width / ${7 * longest(spec) + 36})))` }; // follows the figure's width
    spec.config = { ...config, ...spec.config, legend: { ...config.legend, columns } };
    const told = (handler, event, item, value) => {
      node.style.cursor = item?.datum?.runs ? "pointer" : "";
      tell(event, value, item?.datum?.runs);
    };
    const view = new vega.View(vega.parse(vegaLite.compile(spec).spec), { renderer: "svg", container: node, tooltip: told });
    // Vega names every axis and mark for screen readers; the figure has one name in words, so these would only repeat it.
    await view.runAsync();
    for (const part of node.querySelectorAll("svg, svg [role], svg [aria-label]")) for (const name of ["role", "aria-label", "aria-roledescription"]) part.removeAttribute(name);
    view.addEventListener("click", (event, item) => item?.datum?.runs && opened(item.datum.runs.trim().split(/\s+/)));
    node.addEventListener("mouseleave", () => { tip.hidden = true; });
    node.dataset.drawn = "";
    return view;
  }

  const idle = window.requestIdleCallback || ((done) => setTimeout(done, 1));
  async function all() {
    for (const node of document.querySelectorAll(".drawing[data-figure]")) {
      await new Promise((done) => idle(done, { timeout: 200 }));
      views.set(node.dataset.figure, await draw(node, figures[node.dataset.figure]));
    }
    document.documentElement.dataset.drawn = "";
  }

  // On white, with the colours of a light page, whatever the page has now.
  async function save(name) {
    const text = (await views.get(name).toSVG()).replace(/var\(--(\w+)\)/g, (whole, colour) => palette[colour] ?? whole);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = name + ".svg";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  for (const button of document.querySelectorAll("button.export")) button.addEventListener("click", () => views.has(button.dataset.figure) && save(button.dataset.figure));

  return { draw, all, open: (action) => { opened = action; } };
})();
