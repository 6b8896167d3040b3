// Fills the page: theme, copy buttons, one block of charts per recipe, the sample browser.

const report = JSON.parse(document.getElementById("data").textContent);
const redraws = new Map();
const watcher = new ResizeObserver((entries) => {
  for (const entry of entries) redraws.get(entry.target)?.();
});

/** Draw now and whenever the width changes; a folded-away chart has no width and waits. */
function keep(host, paint) {
  let width = -1;
  const again = (force) => {
    if (!host.clientWidth || (!force && host.clientWidth === width)) return;
    width = host.clientWidth;
    host.replaceChildren();
    paint();
  };
  redraws.set(host, again);
  watcher.observe(host);
  return () => again(true);
}

function chartBox(parent, { name, unit = "", meaning = "", note = "" }, context, paint) {
  const figure = make("figure", { class: "chart" });
  const caption = make("figcaption");
  const title = make("h4", {}, name);
  if (unit) title.appendChild(make("span", { class: "unit" }, unit));
  const widen = make("button", { type: "button", class: "widen", "aria-pressed": "false", title: "Enlarge", "aria-label": `Enlarge ${name}` }, "\u2922");
  caption.append(title, widen);
  if (meaning) caption.appendChild(make("p", {}, meaning));
  const host = make("div", { class: "plot" });
  figure.append(caption, host);
  if (note) figure.appendChild(make("p", { class: "note" }, note));
  parent.appendChild(figure);
  const own = Object.create(context, { wide: { value: false, writable: true } });
  const again = keep(host, () => paint(host, own));
  widen.addEventListener("click", () => {
    own.wide = figure.classList.toggle("wide");
    widen.setAttribute("aria-pressed", String(own.wide));
    again();
  });
  context.redraw.push(again);
}

function beyondNote(chart) {
  if (!chart.beyond) return "";
  const { n, value, step } = chart.beyond;
  return `${n === 1 ? "One point lies" : `${fmt(n)} points lie`} outside the axis; the furthest is ${fmt(value)} at step ${fmt(step)}.`;
}

function legend(parent, section, context) {
  const row = make("div", { class: "legend" });
  for (const index of section.members.length > 1 ? section.members : []) {
    const button = make("button", { type: "button", "aria-pressed": "true", title: section.runs ? "Show or hide this group" : "Show or hide this run" });
    button.append(make("i", { class: `swatch ${runClass(context.runs[index])}` }), context.runs[index].name);
    button.addEventListener("click", () => {
      if (!context.hidden.delete(index)) context.hidden.add(index);
      button.setAttribute("aria-pressed", String(!context.hidden.has(index)));
      context.redraw.forEach((again) => again());
    });
    row.appendChild(button);
  }
  const lines = section.groups.flatMap((group) => group.charts.flatMap((chart) => chart.lines));
  const says = [];
  if (new Set(lines.map((line) => line.phase)).has("eval")) says.push("faint: training, strong: held out");
  if (lines.some((line) => line.low)) says.push("shaded: 95% interval");
  if (lines.some((line) => line.rule)) says.push("dotted: a trivial rule to beat");
  if (section.alarms.length) says.push("\u25bc alarm");
  if (lines.some((line) => line.bad.length)) says.push("\u00d7 not finite");
  const longest = Math.max(0, ...lines.map((line) => line.n));
  if (longest > 400) says.push(`lines of up to ${fmt(longest)} points are thinned to 400, keeping the lowest and highest of each stretch`);
  const trend = lines.find((line) => line.trend);
  if (trend) says.push(`thick: mean over ${trend.trend.window} points, an aid for the eye`);
  const said = says.join("; ");
  if (said) row.appendChild(make("span", {}, `${said[0].toUpperCase()}${said.slice(1)}.`));
  if (row.childNodes.length) parent.appendChild(row);
}

function fold(parent, title, count, open) {
  const details = make("details", { class: "group" });
  if (open) details.open = true;
  const summary = make("summary", {}, title);
  summary.appendChild(make("span", { class: "unit" }, count === 1 ? "1 chart" : `${count} charts`));
  const grid = make("div", { class: "grid" });
  details.append(summary, grid);
  parent.appendChild(details);
  return grid;
}

function chartSection(section) {
  const host = document.querySelector(`[data-section="${section.id}"]`);
  if (!host) return;
  const context = { runs: section.runs ?? report.runs, hidden: new Set(), alarms: section.alarms, redraw: [], xRange: null };
  const main = section.groups.flatMap((g) => g.charts.flatMap((c) => c.lines)).filter((line) => line.phase !== "critic");
  context.xRange = extent(main.flatMap((line) => [line.x[0], line.x.at(-1)]));
  const warmUp = Object.create(context, { alarms: { value: [] }, xRange: { value: null } });
  legend(host, section, context);
  if (section.versus.length) {
    const grid = fold(host, "Proxy against gold", section.versus.some((v) => v.kl.some((k) => k !== null)) ? 3 : 2, true);
    const each = Math.max(...section.versus.map((v) => v.each));
    const note = each > 1 ? `Each point is a mean over up to ${fmt(each)} logged steps.` : "";
    const meaning = "Dashed, left axis: proxy score. Solid, right axis: gold score. Parting ways is over-optimisation.";
    chartBox(grid, { name: "Proxy and gold", meaning, note }, context, (at, own) => proxyAndGold(at, section.versus, own));
    const walk = "From the open circle (start) to the filled one (end). Right and down: the proxy is being gamed.";
    chartBox(grid, { name: "Gold against proxy", meaning: walk, note }, context, (at, own) => goldAgainst(at, section.versus, "proxy", "proxy score", own));
    if (section.versus.some((v) => v.kl.some((k) => k !== null))) {
      const price = "What each nat of drift from the reference bought. Up and left is better.";
      chartBox(grid, { name: "Gold against drift", meaning: price, note }, context, (at, own) => goldAgainst(at, section.versus, "kl", "KL, nats per token", own));
    }
  }
  const narrow = window.matchMedia("(max-width: 640px)").matches;
  section.groups.forEach((group, i) => {
    const grid = fold(host, group.title, group.charts.length, group.open !== false && (!narrow || i < 2));
    for (const chart of group.charts) {
      const critic = chart.lines.every((line) => line.phase === "critic");
      chartBox(grid, { ...chart, note: beyondNote(chart) }, critic ? warmUp : context, (at, own) => lineChart(at, chart, own));
    }
  });
  if (section.heat.length) {
    const grid = fold(host, "Distributions over steps", section.heat.length, true);
    for (const heat of section.heat) {
      const name = section.members.length > 1 ? `${heat.name}, ${report.runs[heat.run].name}` : heat.name;
      const meaning = "One column per step shown, darker where more of the batch lies. A growing tail announces a collapse.";
      chartBox(grid, { name, meaning }, context, (at, own) => heatMap(at, heat, own));
    }
  }
}

function themeButton() {
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const now = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => (button.textContent = now() === "dark" ? "Light" : "Dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = now() === "dark" ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  button.hidden = false;
  name();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { class: "offscreen" });
    area.value = text;
    document.body.appendChild(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copy(document.getElementById(button.dataset.copy).textContent);
    button.textContent = done ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
}

themeButton();
report.sections.forEach(chartSection);
if (report.samples) sampleBrowser(document.getElementById("browser"), report.samples);
