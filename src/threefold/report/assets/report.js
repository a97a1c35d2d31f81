"use strict";
// The browser of episodes and the cursors of the curves. Text of the run is only ever set as textContent.

const embedded = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "[]");
const episodes = embedded("episodes");
const tip = document.getElementById("tip");
const dialog = document.getElementById("episode");
const PAGE = 25;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const number = (value) => (value === null || value === undefined ? "none" : String(Number(value.toPrecision(4))));
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const outcome = (e) => (e.success === null ? "unscored" : e.success ? "right" : "wrong");
const texts = (e) => e.segments.flat().map((run) => run.text ?? run.texts.join("")).join("");
const groupKey = (e) => `${e.split} ${e.step} ${e.group}`;

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  (dialog.open ? dialog : document.body).append(tip); // a modal dialog covers everything outside it
  const box = tip.getBoundingClientRect();
  const below = y + 18 + box.height < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
  tip.style.top = `${below ? y + 18 : Math.max(4, y - box.height - 12)}px`;
}

const hideTip = () => { tip.hidden = true; };

// ---- curves: the nearest row of the table below, at the cursor

for (const svg of document.querySelectorAll(".chart svg[data-x]")) {
  const [left, right, first, last] = svg.dataset.x.split(",").map(Number);
  const table = svg.parentElement.querySelector("table");
  const cursor = svg.querySelector(".cursor");
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const steps = [...table.tBodies[0].rows].map((row) => Number(row.cells[0].textContent));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const wanted = first + ((x - left) / (right - left)) * (last - first);
    let best = 0;
    steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i; });
    const at = first === last ? (left + right) / 2 : left + ((steps[best] - first) / (last - first)) * (right - left);
    cursor.setAttribute("transform", `translate(${at} 0)`);
    cursor.setAttribute("visibility", "visible");
    const cells = [...table.tBodies[0].rows[best].cells].map((cell) => cell.textContent || "none");
    showTip(names.map((name, i) => `${name}: ${cells[i]}`).join("\n"), event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hideTip(); });
}

// ---- the table of episodes

const state = { filtered: episodes, page: 0, open: -1, shade: "advantage", opener: null, focusAfter: null };
const controls = {};
let body, pager;

function select(label, name, options) {
  const control = element("select", { name });
  for (const [value, text] of options) control.append(element("option", { value, textContent: text }));
  controls[name] = control;
  control.addEventListener("change", filter);
  return element("label", {}, label, control);
}

function build(root) {
  const steps = [...new Set(episodes.map((e) => e.step))].sort((a, b) => b - a);
  const splits = [...new Set(episodes.map((e) => e.split))].sort();
  const filters = element("div", { className: "filters" },
    select("Step", "step", [["", "all"], ...steps.map((s) => [String(s), String(s)])]),
    select("Outcome", "outcome", [["", "all"], ["right", "right"], ["wrong", "wrong"], ["unscored", "unscored"]]),
    select("Group", "dead", [["", "all"], ["dead", "dead"], ["right", "dead, all right"], ["wrong", "dead, all wrong"],
      ["alive", "not dead"]]));
  if (splits.length > 1) filters.append(select("Split", "split", [["", "all"], ...splits.map((s) => [s, s])]));
  controls.text = element("input", { type: "search", placeholder: "question, answer or text" });
  controls.text.addEventListener("input", filter);
  filters.append(element("label", { className: "search" }, "Search", controls.text));
  const dialogues = episodes.every(hasNoAnswer);
  const heads = columns([["step", ""], ["group", "roomy"], ["member", "roomy"], [dialogues ? "opening" : "question", "wide"],
    [dialogues ? "last action" : "answer given", "middle roomy"], ["true answer", "middle roomy"], ["outcome", "middle"],
    ["reward", "number roomy"], ["advantage", "number"]]);
  const head = element("tr", {},
    ...heads.map(([text, className]) => element("th", { textContent: text, className, scope: "col" })));
  body = element("tbody");
  pager = element("div", { className: "pager" });
  const table = element("table", { className: "list" }, element("thead", {}, head), body);
  root.append(filters, element("div", { className: "scroll" }, table), pager);
  body.addEventListener("click", (event) => openRow(event.target.closest("tr")));
  body.addEventListener("keydown", moveInTable);
  filter();
}

function hasNoAnswer(e) { // a dialogue has none to compare
  return Boolean(e.environment) && !e.truth;
}

// The true answer, the sixth, is left out where no episode has one.
function columns(all) {
  return episodes.some((e) => e.truth) ? all : all.toSpliced(5, 1);
}

// Long openings begin alike (instructions, skills): what tells tasks apart stands at their end.
function asked(e) {
  if (!hasNoAnswer(e)) return e.question.slice(-400);
  return e.question.split("\n").filter((line) => line.trim()).slice(-2).join(" ");
}

function filter() {
  const wanted = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value]));
  const text = wanted.text.toLowerCase();
  state.filtered = episodes.filter((e) =>
    (!wanted.step || String(e.step) === wanted.step) &&
    (!wanted.outcome || outcome(e) === wanted.outcome) &&
    (!wanted.split || e.split === wanted.split) &&
    (!wanted.dead || (wanted.dead === "dead" ? e.dead : wanted.dead === "alive" ? !e.dead : e.dead === wanted.dead)) &&
    (!text || [e.question, e.given, e.truth, e.task, texts(e)].some((s) => s.toLowerCase().includes(text))));
  state.page = 0;
  show();
}

function show() {
  const from = state.page * PAGE;
  const rows = state.filtered.slice(from, from + PAGE);
  body.replaceChildren(...rows.map((e, i) => {
    const cell = (text, className = "") => element("td", { textContent: text, className, title: String(text) });
    const row = element("tr", { tabIndex: i ? -1 : 0 },
      ...columns([cell(e.step), cell(e.group, "roomy"), cell(e.member, "roomy"), cell(asked(e), "isolate"),
        cell(e.given, "isolate roomy"), cell(e.truth, "isolate roomy"), cell(outcome(e) + (e.dead ? ", dead" : ""), outcome(e)),
        cell(number(e.reward), "number roomy"), cell(e.advantage === null ? "none" : signed(e.advantage), "number")]));
    row.dataset.index = from + i;
    return row;
  }));
  const last = Math.max(0, Math.ceil(state.filtered.length / PAGE) - 1);
  const turn = (text, by) => {
    const button = element("button", { type: "button", textContent: text });
    button.disabled = state.page + by < 0 || state.page + by > last;
    button.addEventListener("click", () => { state.page += by; show(); });
    return button;
  };
  const shown = rows.length ? `${from + 1} to ${from + rows.length} of ${state.filtered.length}` : "No episode fits.";
  pager.replaceChildren(turn("Newer", -1), turn("Older", 1), element("span", { className: "muted", textContent: shown }));
}

function openRow(row) {
  if (!row) return;
  state.opener = row.dataset.index;
  openEpisode(Number(row.dataset.index));
}

function moveInTable(event) {
  const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  const row = event.target.closest("tr");
  if (event.key === "Enter") openRow(row);
  else if (by) {
    const other = by > 0 ? row.nextElementSibling : row.previousElementSibling;
    if (other) { row.tabIndex = -1; other.tabIndex = 0; other.focus(); }
  } else return;
  event.preventDefault();
}

// ---- one episode

const tokens = []; // what the tooltip says about each shaded span, by data-token

function openEpisode(index) {
  if (index < 0 || index >= state.filtered.length) return;
  state.open = index;
  draw(state.filtered[index]);
  if (!dialog.open) dialog.showModal();
  document.getElementById("detail").scrollTop = 0;
}

function draw(e) {
  hideTip();
  document.getElementById("place").textContent = `${state.open + 1} of ${state.filtered.length} (keys j and k, Escape)`;
  document.getElementById("previous").disabled = state.open === 0;
  document.getElementById("next").disabled = state.open === state.filtered.length - 1;
  document.getElementById("detail").replaceChildren(
    element("h2", { textContent: `Step ${e.step}, group ${e.group}, member ${e.member}` }),
    element("p", { className: "lead isolate prose", textContent: e.question }),
    facts(e), ...members(e), ...turns(e), ...transcript(e));
}

function facts(e) {
  const list = element("dl", { className: "facts" });
  const add = (name, value, className = "") => list.append(element("div", {},
    element("dt", { textContent: name }), element("dd", { textContent: value, className })));
  add("Outcome", outcome(e), outcome(e));
  if (!hasNoAnswer(e)) {
    add("Answer given", e.given || "none found", "isolate");
    add("True answer", e.truth || "not recorded", "isolate");
  }
  add("Reward", number(e.reward));
  add("Advantage", e.advantage === null ? "none" : signed(e.advantage));
  add("By outcome alone", e.outcome_advantage === null ? "none" : signed(e.outcome_advantage));
  add("Group", e.dead ? `dead, all ${e.dead}` : "not dead");
  add("Tokens written", String(e.tokens));
  add("Ended", e.violation ? `${e.ended}: ${e.violation} in turn ${e.violation_turn}` : e.ended, e.violation ? "wrong" : "");
  if (e.skills) add("Skill bank", e.skills);
  add("Task", e.environment ? `${e.task}, ${e.environment}` : e.task, "isolate");
  for (const [name, value] of Object.entries(e.rewards)) add(`Reward ${name}`, number(value));
  for (const [name, value] of Object.entries(e.signals)) if (name !== "reward") add(name, number(value));
  return list;
}

function members(e) {
  const group = episodes.filter((other) => groupKey(other) === groupKey(e)).sort((a, b) => a.member - b.member);
  if (group.length < 2) return [];
  const row = element("div", { className: "members" });
  for (const other of group) {
    const text = `${other.member}: ${outcome(other)} ${other.advantage === null ? "" : signed(other.advantage)}`;
    const button = element("button", { type: "button", textContent: text, className: outcome(other) });
    if (other === e) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      if (!state.filtered.includes(other)) { // a filter hides this member: take the filters away
        for (const control of Object.values(controls)) control.value = "";
        filter();
      }
      openEpisode(state.filtered.indexOf(other));
    });
    row.append(button);
  }
  return [element("h3", { textContent: "Members of the group, with their advantages" }), row];
}

function turns(e) {
  if (!e.turns.length) return [];
  const names = (field) => [...new Set([e.start, ...e.turns.map((turn) => turn[field])]
    .flatMap((values, i) => (i || field === "state" ? Object.keys(values) : [])))];
  const channels = names("rewards"), known = names("state");
  const moved = (name) => [e.start, ...e.turns.map((turn) => turn.state)].some((values) => values[name]);
  const states = known.filter(moved), still = known.filter((name) => !moved(name));
  const skilled = e.turns.some((turn) => turn.skills.length);
  const heads = ["turn", "action", ...channels.map((name) => `reward ${name}`), ...states, "advantage", "entropy",
    ...(skilled ? ["skills"] : [])];
  const row = (tag, cells) => element("tr", {}, ...cells.map((cell) => element(tag, {}, cell)));
  const figure = (values, name) => (name in values ? number(values[name]) : "");
  const rows = e.turns.map((turn, i) => {
    const jump = element("button", { type: "button", textContent: String(i), title: "show its tokens" });
    jump.addEventListener("click", () => document.querySelector(`[data-turn="${i}"]`)?.scrollIntoView({ block: "center" }));
    const line = row("td", [jump, turn.action, ...channels.map((name) => figure(turn.rewards, name)),
      ...states.map((name) => figure(turn.state, name)), turn.advantage === null ? "" : signed(turn.advantage),
      turn.entropy === null ? "" : number(turn.entropy), ...(skilled ? [turn.skills.join(", ")] : [])]);
    line.cells[1].classList.add("isolate", "said");
    if (e.violation_turn === i) {
      line.className = "broken";
      line.cells[1].append(element("strong", { textContent: ` broke ${e.violation}` }));
    }
    return line;
  });
  if (Object.keys(e.start).length) {
    rows.unshift(row("td", ["start", "", ...channels.map(() => ""), ...states.map((name) => figure(e.start, name)), "", "",
      ...(skilled ? [""] : [])]));
  }
  const table = element("table", { className: "turns" }, element("thead", {}, row("th", heads)),
    element("tbody", {}, ...rows));
  const note = still.length ? [element("p", { className: "muted", textContent: `0 throughout: ${still.join(", ")}.` })] : [];
  return [element("h3", { textContent: "Turns" }), element("div", { className: "scroll" }, table), ...note];
}

const advantageOf = (run, i) => (Array.isArray(run.advantage) ? run.advantage[i] : run.advantage);

/** Largest magnitude over the sample, so that shades of different episodes compare. A veto lies far beyond all other
 * advantages and would pale them: violators are shaded in full, and measure nothing where others are there. */
function reach(name) {
  const clean = episodes.filter((e) => !e.violation);
  let most = 0;
  for (const run of (name === "advantage" && clean.length ? clean : episodes).flatMap((e) => e.segments.flat())) {
    if (run.turn < 0) continue;
    const values = name === "advantage" ? [].concat(run.advantage) : run.signals[name] ?? [];
    for (const value of values) most = Math.max(most, Math.abs(value ?? 0));
  }
  return most;
}

function transcript(e) {
  const runs = e.segments.flat();
  const names = ["advantage", ...new Set(runs.flatMap((run) => Object.keys(run.signals ?? {})))];
  const shade = names.includes(state.shade) ? state.shade : "advantage";
  const most = reach(shade);
  const control = element("select", { id: "shade" }, ...names.map((name) => element("option", { textContent: name })));
  control.value = shade;
  control.addEventListener("change", () => { state.shade = control.value; draw(e); document.getElementById("shade").focus(); });
  const diverging = shade === "advantage";
  const scale = element("span", { className: "scale" }, diverging ? `-${number(most)}` : "0",
    element("i", { className: diverging ? "diverging" : "sequential" }), diverging ? `+${number(most)}` : `${number(most)}`);
  const legend = element("div", { className: "shading" }, element("label", {}, "Shade by ", control), scale,
    element("span", { className: "masked", textContent: " not written by the agent " }));
  if (runs.some((run) => run.critical?.length)) {
    legend.append(element("span", { className: "critical", textContent: "critical token" }));
  }
  tokens.length = 0;
  const blocks = e.segments.map((segment) =>
    element("div", { className: "text" }, ...segment.flatMap((run) => spans(run, shade, most, e))));
  if (e.cut) {
    blocks.push(element("p", { className: "muted", textContent: `${e.cut} further tokens are in rollouts.jsonl.` }));
  }
  return [element("h3", { textContent: "Tokens" }), legend, ...blocks];
}

function spans(run, shade, most, e) {
  if (run.turn < 0) return [element("span", { className: "masked", textContent: run.text })];
  const critical = new Set(run.critical ?? []);
  return run.texts.map((text, i) => {
    const advantage = advantageOf(run, i);
    const value = shade === "advantage" ? advantage : run.signals[shade]?.[i];
    const span = element("span", { textContent: text });
    if (value && most) {
      span.className = shade !== "advantage" ? "heat" : value > 0 ? "up" : "down";
      span.style.setProperty("--w", (0.75 * Math.min(1, Math.abs(value) / most)).toFixed(3));
    }
    if (critical.has(i)) span.classList.add("critical");
    const lines = [`advantage ${advantage ? signed(advantage) : number(advantage)}`];
    for (const [name, values] of Object.entries(run.signals)) lines.push(`${name} ${number(values[i])}`);
    if (run.critical) lines.push(critical.has(i) ? "critical" : "not critical");
    if (run.turn > 0) lines.push(`turn ${run.turn}`);
    if (i === 0 && e.turns.length > 1) { // a label before the turn's first token, which the style writes
      span.dataset.turn = run.turn;
      span.classList.add("turnstart");
      if (e.violation_turn === run.turn) span.classList.add("brokenstart");
    }
    span.dataset.token = tokens.push(lines.join("\n")) - 1;
    return span;
  });
}

document.getElementById("detail").addEventListener("pointermove", (event) => {
  const text = tokens[event.target.dataset?.token];
  if (text) showTip(text, event.clientX, event.clientY);
  else hideTip();
});
document.getElementById("detail").addEventListener("click", (event) => {
  const text = tokens[event.target.dataset?.token];
  if (text) showTip(text, event.clientX, event.clientY);
});
document.getElementById("detail").addEventListener("pointerleave", hideTip);
document.getElementById("detail").addEventListener("scroll", hideTip);
document.getElementById("previous").addEventListener("click", () => openEpisode(state.open - 1));
document.getElementById("next").addEventListener("click", () => openEpisode(state.open + 1));
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const by = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
  if (by) { openEpisode(state.open + by); event.preventDefault(); }
});
dialog.addEventListener("close", () => {
  hideTip();
  const row = state.opener === null ? null : body.querySelector(`tr[data-index="${state.opener}"]`);
  (state.focusAfter ?? row)?.focus();
  state.focusAfter = null;
});

const browser = document.getElementById("browser");
if (browser) build(browser);
