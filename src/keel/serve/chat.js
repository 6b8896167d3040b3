// The chat page. What the model or the server says only ever becomes text nodes.

import { drawReply, drawTurns, spelled } from "./trace.js";

const $ = (id) => document.getElementById(id);
const KEY = "keel-serve-token";
const state = { model: null, axis: null, turns: [], running: null, tokens: [], rolling: [], skipped: 0, drawn: 0 };

class Trouble extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

async function ask(path, options = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}`, ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. Is it still running?", 0, "unreachable");
  }
  if (answer.ok) return answer;
  let told = {};
  try { told = (await answer.json()).error ?? {}; } catch { /* a body that is no JSON says nothing more */ }
  throw new Trouble(told.message ?? `The server answered ${answer.status}.`, answer.status, told.code);
}

// --- the token

function takeFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem(KEY, found);
    history.replaceState(null, "", location.pathname);
  }
}

function openDoor(complaint) {
  $("wrong").hidden = !complaint;
  $("wrong").textContent = complaint ?? "";
  if (!$("door").open) $("door").showModal();
  $("token").focus();
}

async function enter() {
  if (!sessionStorage.getItem(KEY)) return openDoor(null);
  $("state").textContent = "connecting";
  try {
    const models = await (await ask("v1/models")).json();
    state.model = models.data[0].id;
    state.axis = await (await ask("v1/axis")).json();
  } catch (trouble) {
    $("state").textContent = "not connected";
    if (trouble.status === 401) return openDoor("That token is not the server's.");
    return shownTrouble(trouble.message, [["Try again", enter]]);
  }
  if ($("door").open) $("door").close();
  document.querySelectorAll(".trouble").forEach((node) => node.remove());
  $("model").textContent = state.model;
  document.title = `${state.model} \u2013 keel chat`;
  $("state").textContent = "ready";
  settle();
  $("said").focus();
}

// --- settings

function settle() {
  const axis = state.axis;
  document.body.classList.toggle("bare", !axis.available);
  $("watch").hidden = $("acts").hidden = !axis.available;
  if (!axis.available) return;
  $("where").textContent = `at block ${axis.layer}; up: the Assistant`;
  $("window").textContent = String(axis.window);
  document.querySelector(".k-range").hidden = !axis.default_range;
  $("preset").replaceChildren(...axis.presets.map((preset) => new Option(preset.name)));
  const own = axis.defaults;
  const usual = axis.presets.find((preset) => preset.name.includes("-p0.25")) ?? axis.presets[0];
  $("cap").checked = Boolean(own.cap);
  $("preset").value = typeof own.cap === "string" ? own.cap : usual?.name ?? "";
  $("steer").value = String(own.steer ?? 0);
  $("on").value = own.where;
  if (!own.cap) followPreset();
  $("locked").hidden = axis.allow;
  for (const id of ["cap", "preset", "steer", "on"]) $(id).disabled = !axis.allow;
  if (axis.allow && !axis.presets.length) $("cap").disabled = $("preset").disabled = true;
  if (axis.allow && !axis.steerable) $("steer").disabled = true;
  showSteer();
  draw();
}

// A preset that was fitted on replies alone says so in its name, and belongs on replies.
function followPreset() {
  if (state.axis.allow && $("preset").value.endsWith("-generation")) $("on").value = "generation";
}

function showSteer() {
  $("shown").textContent = spelled(Number($("steer").value));
}

function asked() {
  const axis = state.axis;
  if (!axis.available) return undefined;
  if (!axis.allow) return { monitor: true };
  const strength = Number($("steer").value);
  const wanted = { monitor: true, where: $("on").value };
  // What a request leaves out is as the operator set it; so only a change of it is sent.
  if (axis.presets.length) wanted.cap = $("cap").checked ? $("preset").value : null;
  if (axis.steerable && strength !== (axis.defaults.steer ?? 0)) wanted.steer = strength || null;
  return wanted;
}

// --- the conversation

function shownTurn(turn) {
  $("empty").hidden = true;
  const node = document.createElement("article");
  node.className = `turn ${turn.role}`;
  const who = document.createElement("h2"), text = document.createElement("p"), told = document.createElement("p");
  who.textContent = turn.role === "user" ? "You" : state.model;
  text.className = "text";
  text.textContent = turn.text;
  told.className = "told";
  node.append(who, text, told);
  $("log").append(node);
  Object.assign(turn, { node, textNode: text, toldNode: told });
  return turn;
}

function shownTrouble(message, ways) {
  const node = document.createElement("div"), text = document.createElement("p");
  node.className = "trouble";
  node.setAttribute("role", "alert");
  text.textContent = message;
  node.append(text);
  for (const [name, act] of ways) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => { node.remove(); act(); });
    node.append(button);
  }
  $("log").append(node);
  follow(true);
}

function follow(always) {
  const log = $("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
}

function tell(turn) {
  if (typeof turn.projection !== "number") return;
  const range = state.axis.default_range;
  const side = range && turn.role === "assistant" ? (turn.projection < range.low ? "below" : turn.projection > range.high ? "above" : null) : null;
  const held = turn.held ? `, cap acted on ${turn.held} of ${turn.n} tokens` : "";
  turn.toldNode.textContent = `projection ${spelled(turn.projection)}${side ? `, ${side} the default range` : ""}${held}`;
  turn.toldNode.classList.toggle("outside", Boolean(side));
}

function draw() {
  if (!state.axis?.available) return;
  cancelAnimationFrame(state.drawn);
  state.drawn = requestAnimationFrame(() => {
    drawTurns($("turns"), state.turns, state.axis.default_range);
    drawReply($("reply"), state.tokens, state.rolling, state.axis.default_range);
    $("numbers").replaceChildren(...state.turns.map((turn, i) => {
      const row = document.createElement("tr");
      for (const cell of [i + 1, turn.role, spelled(turn.projection), turn.n ?? "\u2013"]) {
        const place = document.createElement("td");
        place.textContent = String(cell);
        row.append(place);
      }
      return row;
    }));
  });
}

function flag(kind, words) {
  $("verdict").textContent = words;
  // Said aloud only when it changes, not with every token.
  if (kind !== $("flag").className && kind) $("spoken").textContent = words;
  $("flag").className = kind;
}

function judged(side, value, what) {
  const range = state.axis.default_range;
  if (!range) return flag("", `${what} ${spelled(value)}; this axis has no calibrated range`);
  if (side) return flag("outside", `${what} ${spelled(value)}: ${side} the default range, ${spelled(range.low)} to ${spelled(range.high)}`);
  return flag("inside", `${what} ${spelled(value)}: within the default range`);
}

// What one chunk says of the axis, into the turn that is being written and those before it.
function heard(axis, turn, sent) {
  if (axis.turns) {
    for (const told of axis.turns) {
      const earlier = sent[told.turn];
      if (earlier && typeof earlier.projection !== "number" && told.projection !== null) {
        Object.assign(earlier, { projection: told.projection, n: told.n_tokens });
        tell(earlier);
      }
    }
  }
  for (const token of axis.tokens ?? []) {
    state.tokens.push(token);
    turn.sum += token.projection;
    turn.held += token.bounded ? 1 : 0;
    turn.n = state.tokens.length;
    turn.projection = turn.sum / turn.n;
    const recent = state.tokens.slice(-state.axis.window);
    state.rolling.push(recent.reduce((sum, one) => sum + one.projection, 0) / recent.length);
  }
  if (axis.tokens) judged(axis.outside, axis.rolling, "Now at");
  if (axis.message && axis.message.projection !== null) {
    turn.projection = axis.message.projection;
    judged(axis.message.outside, turn.projection, "This reply was at");
  }
  tell(turn);
  draw();
}

async function* chunks(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function reply() {
  const kept = state.turns.slice(state.skipped).filter((turn) => turn.text.trim());
  const system = $("system").value.trim();
  const messages = kept.map((turn) => ({ role: turn.role, content: turn.text }));
  const sent = system ? [null, ...kept] : kept;
  const body = { model: state.model, messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true, temperature: Number($("temperature").value), axis: asked() };
  if ($("longest").value) body.max_tokens = Number($("longest").value);
  const turn = shownTurn({ role: "assistant", text: "", sum: 0, held: 0, n: 0, live: true });
  turn.textNode.classList.add("waits");
  state.turns.push(turn);
  Object.assign(state, { tokens: [], rolling: [], running: new AbortController() });
  busy(true);
  follow(true);
  let finished = null, trouble = null;
  try {
    const answer = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal: state.running.signal,
      headers: { "content-type": "application/json" } });
    for await (const chunk of chunks(answer)) {
      if (chunk.error) throw new Trouble(chunk.error.message, 500, chunk.error.code);
      const choice = chunk.choices[0];
      if (choice.delta.content) {
        turn.text += choice.delta.content;
        turn.textNode.append(document.createTextNode(choice.delta.content));
      }
      finished = choice.finish_reason ?? finished;
      if (choice.axis) heard(choice.axis, turn, sent);
      follow(false);
    }
    if (!finished) throw new Trouble("The connection ended before the reply did.", 0, "cut");
  } catch (error) {
    trouble = error.name === "AbortError" ? "stopped" : error;
  }
  closed(turn, finished, trouble);
}

function closed(turn, finished, trouble) {
  turn.live = false;
  turn.textNode.classList.remove("waits");
  state.running = null;
  busy(false);
  const words = turn.toldNode.textContent;
  const ending = trouble === "stopped" ? "stopped" : trouble ? "not finished" : finished === "length" ? "cut at the longest reply" : turn.text.trim() ? "" : "said nothing";
  turn.toldNode.textContent = [words, ending].filter(Boolean).join("; ");
  if (trouble && !turn.text.trim()) {
    turn.node.remove();
    state.turns.pop();
  }
  draw();
  if (trouble === "stopped") return;
  if (trouble) return failed(trouble, turn);
  $("spoken").textContent = `${state.model}: ${turn.text}`;
}

function failed(trouble, turn) {
  if (trouble.status === 401) return openDoor("That token is not the server's any more.");
  const again = () => {
    if (state.turns.at(-1) === turn) { turn.node.remove(); state.turns.pop(); }
    reply();
  };
  const ways = [["Try again", again]];
  if (trouble.code === "context_length_exceeded" && state.turns.length > state.skipped + 1) {
    ways.unshift(["Leave out the oldest turns", () => { leaveOut(); again(); }]);
  }
  shownTrouble(trouble instanceof Trouble ? trouble.message : `This page failed: ${trouble.message}`, ways);
}

function leaveOut() {
  do {
    state.turns[state.skipped].node.classList.add("left-out");
    state.skipped += 1;
  } while (state.turns[state.skipped].role !== "user");
}

function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
  $("fresh").disabled = now;
  $("state").textContent = now ? "writing" : "ready";
  $("log").setAttribute("aria-busy", String(now));
}

function say() {
  const text = $("said").value.trim();
  if (!text || state.running || !state.model) return;
  document.querySelectorAll(".trouble").forEach((node) => node.remove());
  $("said").value = "";
  grow();
  state.turns.push(shownTurn({ role: "user", text }));
  reply();
}

function fresh() {
  Object.assign(state, { turns: [], tokens: [], rolling: [], skipped: 0 });
  document.querySelectorAll(".turn, .trouble").forEach((node) => node.remove());
  $("empty").hidden = false;
  flag("", "Nothing measured yet");
  draw();
  $("said").focus();
}

function grow() {
  const box = $("said");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function showSettings(open) {
  $("settings").hidden = !open;
  $("gear").setAttribute("aria-expanded", String(open));
  if (open) $("settings").querySelector("input:not(:disabled), select:not(:disabled)")?.focus();
  else draw();
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); say(); });
$("said").addEventListener("input", grow);
$("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
});
$("stop").addEventListener("click", () => { state.running?.abort(); $("said").focus(); });
$("fresh").addEventListener("click", fresh);
$("gear").addEventListener("click", () => showSettings($("settings").hidden));
$("steer").addEventListener("input", showSteer);
$("preset").addEventListener("change", followPreset);
$("leave").addEventListener("click", () => { sessionStorage.removeItem(KEY); location.reload(); });
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("token").value.trim());
  $("token").value = "";
  enter();
});
$("door").addEventListener("cancel", (event) => event.preventDefault());
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (!$("settings").hidden) { showSettings(false); $("gear").focus(); } else state.running?.abort();
});
addEventListener("resize", draw);

takeFromAddress();
enter();
