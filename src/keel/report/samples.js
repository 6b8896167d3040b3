// The sample browser: two columns of responses to the same prompts. Every text is hostile until shown as a text node.

const PER_PAGE = 8;

/** Control characters and direction overrides made visible, so that no response can pretend to be another. */
function visible(text) {
  return text
    .replace(/\r\n/g, "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
}

const ORDERS = {
  "as in the file": null,
  "biggest gain first": (row) => -row.gain,
  "biggest loss first": (row) => row.gain,
  "lowest score on the right": (row) => row.right?.gold ?? row.right?.score ?? Infinity,
  "longest on the right": (row) => -(row.right?.n_tokens ?? row.right?.text.length ?? 0),
};

function columnName(column, severalRuns) {
  const step = column.step === 0 ? "" : `, step ${fmt(column.step)}`;
  return `${severalRuns ? `${column.run}: ` : ""}${column.label}${step}`;
}

function option(select, value, text) {
  select.appendChild(make("option", { value }, text));
}

function labelled(text, control) {
  const field = make("div", { class: "field" });
  control.id = `pick-${text.toLowerCase()}`;
  field.append(make("label", { for: control.id }, text), control);
  return field;
}

function sampleBrowser(host, data) {
  const severalRuns = new Set(data.columns.map((c) => c.run)).size > 1;
  const names = data.columns.map((c) => columnName(c, severalRuns));
  const pick = (text, entries) => {
    const select = make("select");
    entries.forEach(([value, name]) => option(select, value, name));
    controls.appendChild(labelled(text, select));
    return select;
  };
  const controls = make("div", { class: "controls" });
  const left = pick("Left", names.map((name, i) => [String(i), name]));
  const right = pick("Right", names.map((name, i) => [String(i), name]));
  right.value = String(Math.min(1, names.length - 1));
  const domains = [...new Set(data.prompts.map((p) => p.domain).filter((d) => d !== null))].sort();
  const domain = domains.length ? pick("Domain", [["", "all"], ...domains.map((d, i) => [String(i + 1), visible(d)])]) : null;
  const order = pick("Order", Object.keys(ORDERS).map((name) => [name, name]));
  const search = make("input", { type: "search", placeholder: "words in prompt or response", spellcheck: "false" });
  controls.appendChild(labelled("Search", search));
  const status = make("p", { class: "note", role: "status" });
  const list = make("div", { class: "cards" });
  const pager = make("div", { class: "pager" });
  host.append(controls, status, list, pager);

  let page = 0;
  const refresh = () => {
    const rows = select(data, { left: left.value, right: right.value, domain: domain?.value ? domains[domain.value - 1] : null, order: order.value, words: search.value });
    const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const kept = data.n > data.prompts.length ? ` The page holds ${fmt(data.prompts.length)} of the ${fmt(data.n)} recorded: the biggest gains and losses, and an even pick of the rest.` : "";
    status.textContent = `${fmt(rows.length)} of ${fmt(data.prompts.length)} prompts.${kept}`;
    list.replaceChildren(...rows.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map((row) => card(row, names[left.value], names[right.value], left.value === right.value)));
    drawPager(pager, page, pages, (to) => {
      page = to;
      refresh();
      host.scrollIntoView({ block: "start" });
    });
  };
  for (const control of [left, right, domain, order]) control?.addEventListener("change", () => { page = 0; refresh(); });
  search.addEventListener("input", () => { page = 0; refresh(); });
  refresh();
}

/** Prompts that pass the filters, joined with both responses, in the order asked for. */
function select(data, { left, right, domain, order, words }) {
  const wanted = words.trim().toLowerCase();
  const has = (row) => [row.prompt.id, ...row.prompt.turns.map((t) => t[1]), row.left?.text ?? "", row.right?.text ?? ""].some((t) => t.toLowerCase().includes(wanted));
  const rows = data.prompts
    .filter((prompt) => domain === null || prompt.domain === domain)
    .map((prompt) => ({ prompt, left: prompt.at[left], right: prompt.at[right] }))
    .filter((row) => (row.left || row.right) && (!wanted || has(row)))
    .map((row) => ({ ...row, ...gain(row) }));
  const by = ORDERS[order];
  const key = (row) => { const k = by(row); return Number.isNaN(k) || k === undefined ? Infinity : k; };
  return by ? rows.sort((a, b) => { const [x, y] = [key(a), key(b)]; return x === y ? 0 : x - y; }) : rows;
}

function gain(row) {
  for (const name of ["gold", "score"]) {
    const [a, b] = [row.left?.[name], row.right?.[name]];
    if (a !== undefined && b !== undefined) return { gain: b - a, gained: name };
  }
  return { gain: NaN, gained: null };
}

function card(row, leftName, rightName, same) {
  const node = make("article", { class: "card" });
  const head = make("header");
  head.appendChild(make("code", {}, visible(row.prompt.id)));
  if (row.prompt.domain !== null) head.appendChild(make("span", {}, visible(row.prompt.domain)));
  if (row.gained && !same) {
    const sign = row.gain > 0 ? "+" : "";
    head.appendChild(make("span", { class: row.gain > 0 ? "up" : row.gain < 0 ? "down" : "" }, `${sign}${fmt(Number(row.gain.toPrecision(3)))} ${row.gained}`));
  }
  node.appendChild(head);
  const prompt = make("div", { class: "prompt" });
  for (const [role, text] of row.prompt.turns) {
    const turn = make("p", { dir: "auto" });
    if (row.prompt.turns.length > 1 || (role && role !== "user")) turn.appendChild(make("b", {}, `${visible(role)} `));
    turn.appendChild(document.createTextNode(visible(text)));
    prompt.appendChild(turn);
  }
  const sides = make("div", { class: same ? "sides one" : "sides" });
  sides.appendChild(side(row.left, leftName));
  if (!same) sides.appendChild(side(row.right, rightName));
  node.append(prompt, sides);
  return node;
}

function side(response, name) {
  const node = make("section");
  node.appendChild(make("h4", {}, name));
  if (!response) {
    node.appendChild(make("p", { class: "note" }, "No response was recorded."));
    return node;
  }
  node.appendChild(make("div", { class: "response", dir: "auto" }, response.text === "" ? "(empty)" : visible(response.text)));
  const facts = [
    ["gold", response.gold],
    ["score", response.score],
    ["KL", response.kl],
    ["tokens", response.n_tokens],
  ].filter(([, value]) => value !== undefined).map(([label, value]) => `${label} ${fmt(Number(value.toPrecision(3)))}`);
  if (!response.ended) facts.push("cut at the limit");
  if (response.verdict) facts.push(visible(response.verdict));
  node.appendChild(make("p", { class: "facts" }, facts.join(" \u00b7 ")));
  return node;
}

function drawPager(pager, page, pages, go) {
  pager.replaceChildren();
  if (pages === 1) return;
  const button = (text, to, disabled) => {
    const node = make("button", { type: "button" }, text);
    node.disabled = disabled;
    node.addEventListener("click", () => go(to));
    pager.appendChild(node);
  };
  button("Previous", page - 1, page === 0);
  pager.appendChild(make("span", {}, `page ${page + 1} of ${pages}`));
  button("Next", page + 1, page === pages - 1);
}
