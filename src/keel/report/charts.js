"use strict";
// Small charts in SVG. Text enters the page only as text nodes, colours only as classes, so nothing here parses input.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = { normal: 156, wide: 320 };
let clips = 0;

function make(tag, attributes = {}, text = null) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function draw(parent, tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.appendChild(node);
  return node;
}

function minus(text) {
  return text.replaceAll("-", "\u2212");
}

function fmt(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(2).replace("e+", "e"));
  if (Number.isInteger(value) || size >= 1e4) return minus(Math.round(value).toLocaleString("en-US"));
  return minus(String(Number(value.toPrecision(4))));
}

/** Round numbers that cover [low, high] from inside, about n of them. */
function ticks(low, high, n, whole = false) {
  const rough = Math.max((high - low) / n, whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const off = (m) => Math.abs(Math.log((m * power) / rough));
  const step = power * [1, 2, 5, 10].reduce((best, m) => (off(m) < off(best) ? m : best));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && found.length < 50; i++) found.push(i * step);
  const exponential = Math.max(Math.abs(low), Math.abs(high)) >= 1e6 || step < 1e-4;
  const decimals = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  const digits = (v) => Math.max(0, Math.floor(Math.log10(Math.abs(v)) + 1e-9) - Math.floor(Math.log10(step) + 1e-9));
  const label = (v) =>
    minus(
      exponential && v !== 0
        ? v.toExponential(digits(v)).replace("e+", "e")
        : v.toLocaleString("en-US", { minimumFractionDigits: exponential ? 0 : decimals, maximumFractionDigits: decimals }),
    );
  return found.map((value) => ({ value, label: label(Math.abs(value) < step * 1e-6 ? 0 : value) }));
}

/** A range with some air; a flat line gets room on both sides. */
function padded(low, high) {
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    return [low - room, high + room];
  }
  return [low - (high - low) * 0.06, high + (high - low) * 0.06];
}

function linear([from, to], [start, end]) {
  return (value) => start + ((value - from) / (to - from || 1)) * (end - start);
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** An empty chart: grid, ticks, clip. Returns its scales and the layer to draw in. */
function frame(host, { x, y, right = null, label, wide = false, xLabel = "step" }) {
  const width = host.clientWidth;
  const height = wide ? HEIGHT.wide : HEIGHT.normal;
  const yTicks = ticks(y[0], y[1], wide ? 7 : 4);
  const rightTicks = right ? ticks(right[0], right[1], wide ? 7 : 4) : [];
  const room = (list) => Math.max(...list.map((t) => t.label.length), 1) * 6.2 + 10;
  const box = { left: room(yTicks), right: width - (right ? room(rightTicks) : 8), top: 10, bottom: height - 32 };
  const svg = draw(host, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": label });
  const sx = linear(x, [box.left, box.right]);
  const sy = linear(y, [box.bottom, box.top]);
  for (const tick of yTicks) {
    draw(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: sy(tick.value), y2: sy(tick.value) });
    draw(svg, "text", { class: "tick", x: box.left - 6, y: sy(tick.value) + 3.5, "text-anchor": "end" }, tick.label);
  }
  const sr = right ? linear(right, [box.bottom, box.top]) : null;
  for (const tick of rightTicks) {
    draw(svg, "text", { class: "tick", x: box.right + 6, y: sr(tick.value) + 3.5 }, tick.label);
  }
  for (const tick of ticks(x[0], x[1], Math.max(2, Math.floor(width / 65)), xLabel === "step")) {
    const atEdge = sx(tick.value) > width - tick.label.length * 3.2 - 1;
    draw(svg, "text", { class: "tick", x: atEdge ? width : sx(tick.value), y: box.bottom + 14, "text-anchor": atEdge ? "end" : "middle" }, tick.label);
  }
  draw(svg, "text", { class: "tick axis", x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel);
  draw(svg, "line", { class: "base", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
  const id = `clip-${++clips}`;
  draw(draw(svg, "clipPath", { id }), "rect", { x: box.left - 3, y: box.top - 3, width: box.right - box.left + 6, height: box.bottom - box.top + 6 });
  const layer = draw(svg, "g", { "clip-path": `url(#${id})` });
  return { svg, layer, box, sx, sy, sr };
}

/** Pieces of a line between its gaps. */
function pieces(xs, ys) {
  const found = [];
  let open = null;
  ys.forEach((value, i) => {
    if (value === null) open = null;
    else if (open) open.push(i);
    else found.push((open = [i]));
  });
  return found.map((part) => part.filter((i) => xs[i] !== undefined));
}

function stroke(layer, xs, ys, sx, sy, classes) {
  for (const part of pieces(xs, ys)) {
    if (part.length === 1) draw(layer, "circle", { class: `dot ${classes}`, cx: sx(xs[part[0]]), cy: sy(ys[part[0]]), r: 2.4 });
    else {
      const d = part.map((i, k) => `${k ? "L" : "M"}${sx(xs[i]).toFixed(1)} ${sy(ys[i]).toFixed(1)}`).join("");
      draw(layer, "path", { class: `curve ${classes}`, d });
    }
  }
}

function runClass(run) {
  return `run-${run.color} dash-${Math.min(run.dash, 2)}`;
}

function band(layer, line, sx, sy, classes) {
  for (const part of pieces(line.x, line.low.map((v, i) => (line.high[i] === null ? null : v)))) {
    if (part.length === 1) {
      const [x, i] = [sx(line.x[part[0]]), part[0]];
      draw(layer, "line", { class: `whisker ${classes}`, x1: x, x2: x, y1: sy(line.low[i]), y2: sy(line.high[i]) });
      continue;
    }
    const top = part.map((i) => `${sx(line.x[i]).toFixed(1)} ${sy(line.high[i]).toFixed(1)}`);
    const under = part.map((i) => `${sx(line.x[i]).toFixed(1)} ${sy(line.low[i]).toFixed(1)}`).reverse();
    draw(layer, "path", { class: `band ${classes}`, d: `M${[...top, ...under].join("L")}Z` });
  }
}

function marks(plot, alarms) {
  for (const alarm of alarms) {
    const x = plot.sx(alarm.step);
    draw(plot.svg, "line", { class: "alarm", x1: x, x2: x, y1: plot.box.top - 2, y2: plot.box.bottom });
    draw(plot.svg, "path", { class: "alarm-head", d: `M${x - 4} ${plot.box.top - 8}h8l-4 6z` });
  }
}

function alarmText(alarm, runs) {
  const where = runs.length > 1 ? `${runs[alarm.run].name}: ` : "";
  const when = alarm.n > 1 ? `steps ${fmt(alarm.step)}\u2013${fmt(alarm.last)}` : `step ${fmt(alarm.step)}`;
  const limit = alarm.value !== null && alarm.limit !== null ? ` (${fmt(alarm.value)}, limit ${fmt(alarm.limit)})` : "";
  return `\u25bc ${where}${alarm.name.replaceAll("_", " ")}, ${when}${limit}. ${alarm.meaning}`;
}

/** One metric over steps, all runs and phases on it. */
function lineChart(host, chart, context) {
  const { runs, hidden, alarms, xRange } = context;
  const lines = chart.lines.filter((line) => !hidden.has(line.run));
  const xs = extent([...lines.flatMap((line) => line.x), ...(xRange ?? [])]);
  if (!xs || !chart.range) {
    host.appendChild(make("p", { class: "note" }, chart.range ? "Every run is hidden." : "No finite value was logged."));
    return;
  }
  const plot = frame(host, {
    x: xs[0] === xs[1] ? [xs[0] - 1, xs[1] + 1] : xs,
    y: padded(...chart.range),
    label: `${chart.name}: ${lines.map((l) => `${runs[l.run].name} ${l.phase}, ${fmt(l.y.find((v) => v !== null))} at first, ${fmt(l.y.findLast((v) => v !== null))} at last`).join("; ")}`,
    wide: context.wide,
  });
  const several = new Set(lines.map((line) => line.phase)).size > 1;
  for (const line of lines) {
    const of = `${runClass(runs[line.run])}${line.rule ? " rule" : ""}`;
    const held = line.phase !== "train" && line.phase !== "critic";
    if (line.low) band(plot.layer, line, plot.sx, plot.sy, of);
    const faint = line.trend || (several && !held && !line.rule) ? " faint" : "";
    stroke(plot.layer, line.x, line.y, plot.sx, plot.sy, of + faint);
    if (line.trend) stroke(plot.layer, line.trend.x, line.trend.y, plot.sx, plot.sy, `${of} trend${several && !held ? " half" : ""}`);
    if (line.n <= 40 || (held && line.n <= 60)) {
      line.y.forEach((v, i) => v !== null && !line.rule && draw(plot.layer, "circle", { class: `dot ${of}`, cx: plot.sx(line.x[i]), cy: plot.sy(v), r: line.n > 25 ? 1.7 : 2.4 }));
    }
    for (const step of line.bad) {
      draw(plot.svg, "text", { class: "bad", x: plot.sx(step), y: plot.box.bottom - 2, "text-anchor": "middle" }, "\u00d7");
    }
  }
  const seen = alarms.filter((alarm) => !hidden.has(alarm.run) && alarm.step >= xs[0] && alarm.step <= xs[1]);
  marks(plot, seen);
  hover(plot, [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b), (step, pixel) => ({
    title: `step ${fmt(step)}`,
    rows: lines.map((line) => lineRow(line, step, runs, several)).filter(Boolean),
    alarms: seen.filter((alarm) => Math.abs(plot.sx(alarm.step) - pixel) < 7).map((alarm) => alarmText(alarm, runs)),
  }));
}

function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

function lineRow(line, step, runs, several) {
  if (!line.x.length) return null;
  const i = nearest(line.x, step);
  const name = [runs.length > 1 ? runs[line.run].name : "", line.rule || (several ? line.phase : "")].filter(Boolean).join(", ");
  const range = line.low ? ` [${fmt(line.low[i])}, ${fmt(line.high[i])}]` : "";
  const value = line.y[i] === null ? "not finite" : fmt(line.y[i]) + range;
  return { run: runs[line.run], text: `${value}${line.x[i] === step ? "" : ` (step ${fmt(line.x[i])})`}`, name };
}

/** A crosshair that follows the pointer or the arrow keys; `tell(x, pixel)` says what stands there. */
function hover(plot, xs, tell) {
  if (!xs.length) return;
  const cross = draw(plot.svg, "line", { class: "cross", y1: plot.box.top, y2: plot.box.bottom, visibility: "hidden" });
  const tip = document.getElementById("tip");
  let at = -1;
  const pixels = xs.map((value) => plot.sx(value));
  const show = (index, pixel, clientX, clientY) => {
    at = index;
    cross.setAttribute("x1", pixels[index]);
    cross.setAttribute("x2", pixels[index]);
    cross.setAttribute("visibility", "visible");
    fillTip(tip, tell(xs[index], pixel));
    placeTip(tip, clientX, clientY);
  };
  const hide = () => {
    cross.setAttribute("visibility", "hidden");
    tip.hidden = true;
  };
  const follow = (event) => {
    const bounds = plot.svg.getBoundingClientRect();
    const pixel = event.clientX - bounds.left;
    show(nearest(pixels, pixel), pixel, event.clientX, event.clientY);
  };
  plot.svg.addEventListener("pointermove", follow);
  plot.svg.addEventListener("pointerdown", follow);
  plot.svg.addEventListener("pointerleave", hide);
  plot.svg.addEventListener("blur", hide);
  plot.svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!move) return;
    event.preventDefault();
    const index = Math.min(xs.length - 1, Math.max(0, at + move));
    const bounds = plot.svg.getBoundingClientRect();
    show(index, pixels[index], bounds.left + pixels[index], bounds.top + 20);
  });
}

function fillTip(tip, { title, rows, alarms = [] }) {
  tip.replaceChildren(make("strong", {}, title));
  for (const row of rows) {
    const item = make("div", { class: "tip-row" });
    if (row.run) item.appendChild(make("i", { class: `swatch ${runClass(row.run)}` }));
    item.append(make("span", {}, row.text), make("small", {}, row.name));
    tip.appendChild(item);
  }
  for (const text of alarms) tip.appendChild(make("div", { class: "tip-alarm" }, text));
}

function placeTip(tip, x, y) {
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > window.innerWidth - 8 ? x - 14 - width : x + 14;
  tip.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, window.innerHeight - height - 8))}px`;
}
