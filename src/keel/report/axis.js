// The persona space in three dimensions, turned by mouse, touch, keys or buttons; and numbers of tokens on touch.

const TURN = 0.16;
const NAMES_AT_ONCE = 26;

/** Places relative to the middle of their box, so that the longest side spans from -1 to 1. */
function fitted(places) {
  const spans = [0, 1, 2].map((k) => extent([0, ...places.map((p) => p[k])]));
  const half = Math.max(...spans.map(([low, high]) => (high - low) / 2)) || 1;
  const middle = spans.map(([low, high]) => (low + high) / 2);
  const move = (p) => p.map((x, k) => (x - middle[k]) / half);
  const rods = spans.map(([low, high], k) => [low, high].map((x) => move([0, 1, 2].map((i) => (i === k ? x : 0)))));
  return { places: places.map(move), rods };
}

/** Right, up and towards the reader, after turning by two angles. */
function turned([x, y, z], yaw, pitch) {
  const [across, deep] = [x * Math.cos(yaw) + z * Math.sin(yaw), z * Math.cos(yaw) - x * Math.sin(yaw)];
  return [across, y * Math.cos(pitch) - deep * Math.sin(pitch), y * Math.sin(pitch) + deep * Math.cos(pitch)];
}

function cubeChart(host, space) {
  const start = { yaw: -0.6, pitch: 0.35 };
  const view = { ...start, find: "" };
  const { places, rods } = fitted(space.places);
  const box = make("div");
  host.appendChild(box);
  let turnTo = () => {};
  const again = keep(box, () => (turnTo = cubePaint(box, space, places, rods, view)));
  const controls = make("div", { class: "controls" });
  const push = (label, text, act) => {
    const button = make("button", { type: "button", "aria-label": label, title: label }, text);
    button.addEventListener("click", () => {
      act();
      turnTo();
    });
    controls.appendChild(button);
  };
  push("Turn left", "\u2190", () => (view.yaw -= TURN));
  push("Turn right", "\u2192", () => (view.yaw += TURN));
  push("Tilt up", "\u2191", () => (view.pitch -= TURN));
  push("Tilt down", "\u2193", () => (view.pitch += TURN));
  push("Turn back to the start", "Reset", () => Object.assign(view, start));
  const field = make("div", { class: "field" });
  const input = make("input", { type: "search", id: `find-${space.at}`, placeholder: "part of a name" });
  field.append(make("label", { for: input.id }, "Find a role"), input);
  input.addEventListener("input", () => {
    view.find = input.value.trim().toLowerCase();
    turnTo();
  });
  controls.appendChild(field);
  host.append(controls, make("p", { class: "note" }, "Drag to turn, or use the arrow keys or the buttons; point at a role for its numbers."));
  return again;
}

/** Draw once; returns what places everything anew after the view has changed. */
function cubePaint(host, space, places, rods, view) {
  const width = host.clientWidth;
  const height = Math.min(460, Math.max(280, 0.72 * width));
  const scale = Math.min(0.44 * width, 0.6 * height);
  const svg = draw(host, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": `Persona space in three dimensions, ${space.names.length} vectors; the arrow keys turn it. All numbers are in the table below.` });
  const lines = rods.map(() => [draw(svg, "line", { class: "rod" })]);
  const layer = draw(svg, "g");
  lines.forEach((pair, k) => pair.push(draw(svg, "text", { class: "rod-name" }, `component ${k + 1}`)));
  const names = draw(svg, "g");
  const dots = places.map((_, i) => draw(layer, "circle", { class: `dot ${space.dress[i]} tone-${space.tones[i]}` }));
  const shown = places.map(() => null);
  const on = (point) => {
    const [x, y, z] = turned(point, view.yaw, view.pitch);
    const near = 1 + 0.22 * z;
    return { x: width / 2 + scale * near * x, y: height / 2 - scale * near * y, z };
  };
  const paint = () => {
    rods.forEach((ends, k) => {
      const [a, b] = ends.map(on);
      for (const [key, value] of Object.entries({ x1: a.x, y1: a.y, x2: b.x, y2: b.y })) lines[k][0].setAttribute(key, value.toFixed(1));
      lines[k][1].setAttribute("x", Math.min(width - 36, Math.max(36, b.x)).toFixed(1));
      lines[k][1].setAttribute("y", Math.min(height - 4, Math.max(12, b.y - 5)).toFixed(1));
    });
    places.forEach((place, i) => {
      shown[i] = on(place);
      const wanted = view.find && space.names[i].toLowerCase().includes(view.find);
      dots[i].setAttribute("cx", shown[i].x.toFixed(1));
      dots[i].setAttribute("cy", shown[i].y.toFixed(1));
      dots[i].setAttribute("r", ((space.dress[i] === "default" ? 6.5 : 4.6) * (1 + 0.25 * shown[i].z)).toFixed(1));
      dots[i].setAttribute("opacity", view.find && !wanted ? "0.25" : (0.75 + 0.25 * Math.min(1, Math.max(0, shown[i].z + 0.5))).toFixed(2));
      dots[i].classList.toggle("found", Boolean(wanted));
    });
    layer.append(...places.map((_, i) => i).sort((a, b) => shown[a].z - shown[b].z).map((i) => dots[i]));
    names.replaceChildren();
    nameSome(names, space, shown, view.find, width, height);
  };
  let frame = 0;
  const turn = () => {
    if (!frame) {
      frame = requestAnimationFrame(() => {
        frame = 0;
        paint();
      });
    }
  };
  paint();
  turning(svg, space, shown, view, turn);
  return turn;
}

/** Names that do not cover each other: the default first, then what was asked for, then the furthest out. */
function nameSome(names, space, shown, find, width, height) {
  const far = (i) => (shown[i].x - width / 2) ** 2 + (shown[i].y - height / 2) ** 2;
  const rank = (i) => (space.dress[i] === "default" ? 0 : find && space.names[i].toLowerCase().includes(find) ? 1 : 2);
  const order = shown.map((_, i) => i).filter((i) => !find || rank(i) < 2).sort((a, b) => rank(a) - rank(b) || far(b) - far(a));
  const taken = [];
  for (const i of order) {
    if (taken.length >= NAMES_AT_ONCE) return;
    const wide = space.names[i].length * 6.2 + 4;
    const place = [[shown[i].x + 8, "start", 0], [shown[i].x - 8, "end", -wide]].find(([x, , shift]) => {
      const left = x + shift;
      return left > 2 && left + wide < width - 2 && !taken.some((t) => left < t.right && t.left < left + wide && Math.abs(t.y - shown[i].y) < 13);
    });
    if (!place) continue;
    taken.push({ left: place[0] + place[2], right: place[0] + place[2] + wide, y: shown[i].y });
    draw(names, "text", { class: "name", x: place[0].toFixed(1), y: (shown[i].y + 4).toFixed(1), "text-anchor": place[1] }, space.names[i]);
  }
}

/** Dragging and keys turn the space; pointing at a role tells its numbers. */
function turning(svg, space, shown, view, turn) {
  const tip = document.getElementById("tip");
  let last = null;
  const point = (event) => {
    const bounds = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    const away = (i) => (shown[i].x - x) ** 2 + (shown[i].y - y) ** 2;
    const i = shown.reduce((best, _, k) => (away(k) < away(best) ? k : best), 0);
    tip.hidden = away(i) > 400;
    if (tip.hidden) return;
    const rows = [{ text: fmt(space.projections[i]), name: "projection" }, ...space.places[i].map((v, k) => ({ text: fmt(v), name: `component ${k + 1}` }))];
    fillTip(tip, { title: space.dress[i] === "default" ? "default" : `${space.names[i]}, ${space.kinds[i]}`, rows });
    placeTip(tip, event.clientX, event.clientY);
  };
  svg.addEventListener("pointerdown", (event) => {
    last = [event.clientX, event.clientY];
    svg.setPointerCapture(event.pointerId);
    point(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!last) return point(event);
    tip.hidden = true;
    view.yaw += (event.clientX - last[0]) * 0.01;
    view.pitch += (event.clientY - last[1]) * 0.01;
    last = [event.clientX, event.clientY];
    turn();
  });
  for (const kind of ["pointerup", "pointercancel"]) svg.addEventListener(kind, () => (last = null));
  svg.addEventListener("pointerleave", () => (tip.hidden = true));
  svg.addEventListener("keydown", (event) => {
    const [yaw, pitch] = { ArrowLeft: [-TURN, 0], ArrowRight: [TURN, 0], ArrowUp: [0, -TURN], ArrowDown: [0, TURN] }[event.key] ?? [0, 0];
    if (!yaw && !pitch) return;
    event.preventDefault();
    view.yaw += yaw;
    view.pitch += pitch;
    turn();
  });
}

/** A touch on a token shows what hovering shows. */
function tokenTips() {
  const tip = document.getElementById("tip");
  document.addEventListener("pointerdown", (event) => {
    const token = event.pointerType === "mouse" ? null : event.target.closest(".tokens span");
    if (token) {
      fillTip(tip, { title: token.title, rows: [] });
      placeTip(tip, event.clientX, event.clientY);
    } else if (!event.target.closest("svg")) tip.hidden = true;
  });
}

for (const space of report.spaces) cubeChart(document.querySelector(`[data-cube="${space.at}"]`), space);
if (document.querySelector(".tokens")) tokenTips();
