"use strict";
// Specifications of the figures of single runs: curves, loss terms, selection and confusion.
const Specs = (() => {
  const fit = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const number = (field, title, scale = {}, more = {}) => ({ field, type: "quantitative", title, scale, ...more });
  const name = (field, more = {}) => ({ field, type: "nominal", title: null, sort: null, ...more });
  const dashes = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2]];
  const colours = (count) => Array.from({ length: count }, (_, i) => `var(--c${i % 8})`);
  const tips = (...fields) => fields.map(([field, title, format]) => ({ field, title, ...(format ? { type: "quantitative", format } : { type: "nominal" }) }));
  const shown = { name: "shown", select: { type: "point", fields: ["kind"], toggle: "true" }, bind: "legend" };
  const faded = { condition: { param: "shown", value: 1 }, value: 0.07 };

  // Lines over epochs: [{kind, values, dash?}]; a run that pauses at rungs has a line at each, and a mark where it ended.
  function lines(parts, title, { low = null, high = null, log = false, rungs = [], ends = null, height = 190 } = {}) {
    const rows = parts.flatMap(({ kind, of = "", values }) => values.flatMap((y, i) => (y == null || (log && y <= 0) ? [] : [{ kind, of, line: kind + of, epoch: i + 1, y }])));
    const kinds = [...new Set(parts.map((part) => part.kind))], measures = [...new Set(parts.map((part) => part.of ?? ""))];
    const scale = log ? { type: "log" } : low == null ? { zero: true } : { domain: [low, high] };
    const several = measures.length > 1;
    const legend = { title: null, symbolType: "stroke", symbolStrokeWidth: 2.5 };
    const encoding = { x: number("epoch", "epoch", { zero: false, nice: false, padding: 6 }, { axis: { tickMinStep: 1, format: "d" } }), y: number("y", title, scale) };
    const colour = name("kind", { legend: kinds.length > 1 ? legend : null, scale: { domain: kinds, range: colours(kinds.length) } });
    const dash = several ? name("of", { legend: null, scale: { domain: measures, range: dashes.slice(0, measures.length) } }) : name("kind", { legend: kinds.length > 1 ? legend : null, scale: { domain: kinds, range: kinds.map((_, i) => dashes[(i + Math.floor(i / 8)) % 4]) } });
    const layers = [{ data: { values: rows }, params: [shown], mark: { type: "line", strokeWidth: 2 }, encoding: { ...encoding, color: colour, strokeDash: dash, detail: name("line"), opacity: faded } },
      { data: { values: rows }, mark: { type: "point", size: rows.length > 60 * parts.length ? 8 : 18 }, encoding: { ...encoding, color: colour, opacity: faded, tooltip: tips(["kind", "line"], ...(several ? [["of", "measured"]] : []), ["epoch", "epoch", "d"], ["y", title, ".4~g"]) } }];
    if (ends) layers.push({ data: { values: parts.map(({ kind, values }) => ({ kind, epoch: values.length, y: values.at(-1), ends: `${ends} at this rung` })) }, mark: { type: "point", filled: false, size: 130, strokeWidth: 2 }, encoding: { ...encoding, color: colour, tooltip: tips(["ends", "the run"]) } });
    if (rungs.length) layers.push({ data: { values: rungs.map((epoch) => ({ epoch, words: `rung ${epoch}` })) }, layer: [
      { mark: { type: "rule", strokeDash: [2, 4], color: "var(--hold)" }, encoding: { x: encoding.x } },
      { mark: { type: "text", align: "left", dx: 4, dy: -6, baseline: "bottom", color: "var(--muted)" }, encoding: { x: encoding.x, y: { value: "height" }, text: { field: "words" } } }] });
    return { ...fit, height, layer: layers };
  }

  function selection([labelled, correct, wrong, caught], classes) {
    const kinds = ["labelled, right or wrong", "labelled and right", "wrong label", "wrong label, caught"];
    const rows = classes.flatMap((label, k) => [[labelled, "taken", 0], [correct, "taken", 1], [wrong, "wrong", 2], [caught, "wrong", 3]].map(([counts, side, kind]) => ({ class: label, side, kind: kinds[kind], count: counts[k] })));
    const range = ["var(--c6)", "var(--c0)", "var(--c5)", "var(--c1)"];
    return { ...fit, height: 170, data: { values: rows }, params: [shown], mark: { type: "bar" },
      encoding: { x: name("class", { axis: { labelAngle: 0 } }), xOffset: name("side"), y: number("count", "images", {}, { stack: null }), color: name("kind", { legend: {}, scale: { domain: kinds, range } }), opacity: faded, tooltip: tips(["class", "class"], ["kind", "images"], ["count", "count", "d"]) } };
  }

  function confusion(counts, classes, step = 30) {
    const rows = counts.flatMap((line, k) => {
      const all = line.reduce((a, b) => a + b, 0) || 1;
      return line.map((count, seen) => ({ k: String(classes[k]), seen: String(classes[seen]), count, share: count / all, right: k === seen, words: count ? String(count) : "" }));
    });
    const axis = { labelAngle: 0, labelLimit: 60, ticks: false, domain: false, labelOverlap: false };
    const tooltip = tips(["k", "true class"], ["seen", "predicted"], ["count", "images", "d"], ["share", "share of the class", ".1%"]);
    return { width: { step }, height: { step }, data: { values: rows },
      encoding: { x: name("seen", { axis: { ...axis, orient: "top" }, title: "predicted class" }), y: name("k", { axis, title: "true class" }), tooltip },
      layer: [
        { mark: { type: "rect", cornerRadius: 3, stroke: "var(--card)", strokeWidth: 2 }, encoding: { color: { condition: { test: "datum.right", value: "var(--c0)" }, value: "var(--c1)" }, opacity: number("share", null, { domain: [0, 1], range: [0.06, 0.66] }, { legend: null }) } },
        ...(step < 24 ? [] : [{ mark: { type: "text", fontSize: 12 }, encoding: { text: { field: "words" } } }])] };
  }
  return { lines, selection, confusion };
})();
