// Draws where a conversation is on the axis: one line over its turns, one over the tokens of a reply.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 40, RIGHT = 8, TOP = 8;

function put(svg, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  svg.append(node);
  return node;
}

export function spelled(value) {
  return value === null || value === undefined ? "\u2013" : value.toFixed(2).replace("-", "\u2212");
}

// Round numbers between two bounds, about as many as asked for.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k += 1) found.push(k * step);
  return [found, Math.max(0, -Math.floor(Math.log10(step)))];
}

// Axis, band and scale; gives back the functions from values to places.
function frame(svg, values, range, bottom, n) {
  svg.replaceChildren();
  const width = svg.clientWidth || 300, height = svg.clientHeight || 120;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const known = [...values, ...(range ? [range.low, range.high] : [])];
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) [low, high] = [-1, 1];
  const room = (high - low || 1) * 0.08;
  low -= room; high += room;
  const y = (v) => TOP + (high - v) / (high - low) * (height - TOP - bottom);
  const x = (i) => LEFT + 8 + (n < 2 ? 0.5 : i / (n - 1)) * (width - LEFT - RIGHT - 16);
  if (range) put(svg, "rect", { class: "band", x: LEFT, y: y(range.high), width: width - LEFT - RIGHT, height: y(range.low) - y(range.high) });
  const [marks, digits] = ticks(low, high, height > 150 ? 5 : 3);
  for (const mark of marks) {
    put(svg, "line", { class: "hair", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) });
    put(svg, "text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, mark.toFixed(digits).replace("-", "\u2212"));
  }
  return { x, y, width, height };
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function off(value, range) {
  return range && (value < range.low || value > range.high);
}

// turns: {role, projection, held, live}; those without a projection keep their place.
export function drawTurns(svg, turns, range) {
  const known = turns.filter((turn) => typeof turn.projection === "number");
  const { x, y, width, height } = frame(svg, known.map((turn) => turn.projection), range, 22, Math.max(turns.length, 6));
  const spots = turns.map((turn, i) => ({ ...turn, at: i })).filter((turn) => typeof turn.projection === "number");
  const line = spots.filter((turn) => turn.role === "assistant").map((turn) => [x(turn.at), y(turn.projection)]);
  if (line.length > 1) put(svg, "path", { class: "line", d: path(line) });
  const size = turns.length > 60 ? 2.5 : 3.6;
  for (const turn of spots) {
    const name = `dot ${turn.role}${turn.live ? " live" : ""}${turn.role === "assistant" && off(turn.projection, range) ? " out" : ""}`;
    const dot = put(svg, "circle", { class: name, cx: x(turn.at), cy: y(turn.projection), r: turn.role === "user" ? size - 0.8 : size });
    put(dot, "title", {}, `turn ${turn.at + 1}, ${turn.role}: ${spelled(turn.projection)}`);
    if (turn.held) put(svg, "circle", { class: "ring", cx: x(turn.at), cy: y(turn.projection), r: size + 2.4 });
  }
  const every = Math.ceil(Math.max(turns.length, 1) / Math.floor((width - LEFT) / 34));
  turns.forEach((_, i) => {
    if ((i + 1) % every === 0) put(svg, "text", { x: x(i), y: height - 6, "text-anchor": "middle" }, String(i + 1));
  });
  const last = spots.at(-1);
  svg.setAttribute("aria-label", last ? `Projection by turn: ${spots.length} turns measured, the last one, by the ${last.role}, at ${spelled(last.projection)}` : "No turn measured yet");
}

// tokens: {projection, bounded}, in order; rolling: a mean for each of them.
export function drawReply(svg, tokens, rolling, range) {
  const { x, y } = frame(svg, tokens.map((token) => token.projection), range, 6, Math.max(tokens.length, 24));
  put(svg, "path", { class: "thin", d: path(tokens.map((token, i) => [x(i), y(token.projection)])) });
  put(svg, "path", { class: "line", d: path(rolling.map((value, i) => [x(i), y(value)])) });
  for (const [i, token] of tokens.entries()) {
    if (token.bounded) put(svg, "circle", { class: "ring", cx: x(i), cy: y(token.projection), r: 2.4 });
  }
  svg.setAttribute("aria-label", tokens.length ? `Projection of ${tokens.length} tokens; the rolling mean is ${spelled(rolling.at(-1))}` : "No token measured yet");
}
