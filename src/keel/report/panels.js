// Charts of their own shape: proxy against gold, and score histograms over steps.

/** Proxy (dashed, left axis) and gold (solid, right axis) over steps: two units, so two labelled axes. */
function proxyAndGold(host, pairs, context) {
  const shown = pairs.filter((pair) => !context.hidden.has(pair.run));
  if (!shown.length) return;
  const proxy = extent(shown.flatMap((p) => p.proxy));
  const gold = extent(shown.flatMap((p) => p.gold));
  const steps = extent(shown.flatMap((p) => p.steps));
  const plot = frame(host, {
    x: steps[0] === steps[1] ? [steps[0] - 1, steps[1] + 1] : steps,
    y: padded(...proxy),
    right: padded(...gold),
    label: `Proxy score from ${fmt(shown[0].proxy[0])} to ${fmt(shown[0].proxy.at(-1))}, gold score from ${fmt(shown[0].gold[0])} to ${fmt(shown[0].gold.at(-1))}`,
    wide: context.wide,
  });
  for (const pair of shown) {
    const of = runClass(context.runs[pair.run]);
    stroke(plot.layer, pair.steps, pair.proxy, plot.sx, plot.sy, `${of} proxy`);
    stroke(plot.layer, pair.steps, pair.gold, plot.sx, plot.sr, `${of} gold`);
  }
  const seen = context.alarms.filter((a) => !context.hidden.has(a.run) && a.step >= steps[0] && a.step <= steps[1]);
  marks(plot, seen);
  hover(plot, [...new Set(shown.flatMap((p) => p.steps))].sort((a, b) => a - b), (step, pixel) => ({
    title: `step ${fmt(step)}`,
    rows: shown.flatMap((pair) => {
      const i = nearest(pair.steps, step);
      const name = context.runs.length > 1 ? `, ${context.runs[pair.run].name}` : "";
      return [
        { run: context.runs[pair.run], text: fmt(pair.proxy[i]), name: `proxy${name}` },
        { run: context.runs[pair.run], text: fmt(pair.gold[i]), name: `gold${name}` },
      ];
    }),
    alarms: seen.filter((a) => Math.abs(plot.sx(a.step) - pixel) < 7).map((a) => alarmText(a, context.runs)),
  }));
}

/** Gold against what was paid for it; each run walks from its open circle to its filled one. */
function goldAgainst(host, pairs, key, xLabel, context) {
  const shown = pairs
    .filter((pair) => !context.hidden.has(pair.run))
    .map((pair) => {
      const kept = pair.steps.map((_, i) => i).filter((i) => pair[key][i] !== null);
      return { run: pair.run, x: kept.map((i) => pair[key][i]), y: kept.map((i) => pair.gold[i]), steps: kept.map((i) => pair.steps[i]) };
    })
    .filter((path) => path.x.length);
  if (!shown.length) return;
  const plot = frame(host, {
    x: padded(...extent(shown.flatMap((p) => p.x))),
    y: padded(...extent(shown.flatMap((p) => p.y))),
    label: `Gold score against ${xLabel}`,
    wide: context.wide,
    xLabel,
  });
  const points = [];
  for (const path of shown) {
    const of = runClass(context.runs[path.run]);
    stroke(plot.layer, path.x, path.y, plot.sx, plot.sy, `${of} faint`);
    path.x.forEach((x, i) => {
      const last = i === path.x.length - 1;
      const kind = i === 0 ? "start" : last ? "end" : "way";
      draw(plot.layer, "circle", { class: `dot ${of} ${kind}`, cx: plot.sx(x), cy: plot.sy(path.y[i]), r: kind === "way" ? 1.6 : 4 });
      points.push({ run: path.run, step: path.steps[i], x, y: path.y[i], px: plot.sx(x), py: plot.sy(path.y[i]) });
    });
  }
  const tip = document.getElementById("tip");
  const follow = (event) => {
    const bounds = plot.svg.getBoundingClientRect();
    const away = (p) => (p.px - event.clientX + bounds.left) ** 2 + (p.py - event.clientY + bounds.top) ** 2;
    const point = points.reduce((best, p) => (away(p) < away(best) ? p : best));
    const run = context.runs[point.run];
    fillTip(tip, {
      title: `step ${fmt(point.step)}`,
      rows: [
        { run, text: fmt(point.y), name: `gold${context.runs.length > 1 ? `, ${run.name}` : ""}` },
        { run, text: fmt(point.x), name: xLabel },
      ],
    });
    placeTip(tip, event.clientX, event.clientY);
  };
  plot.svg.addEventListener("pointermove", follow);
  plot.svg.addEventListener("pointerdown", follow);
  plot.svg.addEventListener("pointerleave", () => (tip.hidden = true));
}

/** Histograms over steps as a heat map: one column per step, darker where more of the batch lies. */
function heatMap(host, heat, context) {
  const columns = heat.columns;
  const run = context.runs[heat.run];
  const filled = columns.flatMap((c) => c.counts.flatMap((n, i) => (n > 0 ? [c.edges[i], c.edges[i + 1]] : [])));
  const y = extent(filled);
  if (!y) return;
  const middle = (i) => (columns[i].step + columns[i + 1].step) / 2;
  const half = columns.length > 1 ? (columns.at(-1).step - columns[0].step) / (columns.length - 1) / 2 : 0.5;
  const from = (i) => (i === 0 ? columns[0].step - half : middle(i - 1));
  const to = (i) => (i === columns.length - 1 ? columns[i].step + half : middle(i));
  const plot = frame(host, { x: [from(0), to(columns.length - 1)], y, label: `${heat.name} over ${columns.length} steps`, wide: context.wide });
  const density = (c, i) => c.counts[i] / (c.edges[i + 1] - c.edges[i]) / (c.counts.reduce((a, b) => a + b, 0) || 1);
  const most = Math.max(...columns.flatMap((c) => c.counts.map((_, i) => density(c, i)))) || 1;
  columns.forEach((column, k) => {
    column.counts.forEach((count, i) => {
      if (count <= 0) return;
      draw(plot.layer, "rect", {
        class: `heat ${runClass(run)}`,
        x: plot.sx(from(k)),
        width: Math.max(0.5, plot.sx(to(k)) - plot.sx(from(k))),
        y: plot.sy(column.edges[i + 1]),
        height: Math.max(0.5, plot.sy(column.edges[i]) - plot.sy(column.edges[i + 1])),
        "fill-opacity": (0.1 + 0.9 * Math.sqrt(density(column, i) / most)).toFixed(2),
      });
    });
  });
  const tip = document.getElementById("tip");
  const follow = (event) => {
    const bounds = plot.svg.getBoundingClientRect();
    const k = nearest(columns.map((c) => plot.sx(c.step)), event.clientX - bounds.left);
    const column = columns[k];
    const at = event.clientY - bounds.top;
    const i = column.counts.findIndex((_, j) => at <= plot.sy(column.edges[j]) && at >= plot.sy(column.edges[j + 1]));
    const row = i < 0 ? "none here" : `${fmt(column.counts[i])} with ${fmt(column.edges[i])} to ${fmt(column.edges[i + 1])}`;
    const total = column.counts.reduce((a, b) => a + b, 0);
    fillTip(tip, { title: `step ${fmt(column.step)}`, rows: [{ run, text: row, name: `of ${fmt(total)}` }] });
    placeTip(tip, event.clientX, event.clientY);
  };
  plot.svg.addEventListener("pointermove", follow);
  plot.svg.addEventListener("pointerdown", follow);
  plot.svg.addEventListener("pointerleave", () => (tip.hidden = true));
}
