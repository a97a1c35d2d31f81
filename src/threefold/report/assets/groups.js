"use strict";
// The map of groups. It opens episodes through the functions of report.js.

const map = embedded("groups");
const mapRoot = document.getElementById("groupmap");

function buildMap(root) {
  const columns = map.steps;
  const most = Math.max(...columns.map((column) => column.cells.length));
  const width = Math.max(4, Math.min(26, Math.floor(900 / columns.length)));
  const height = Math.max(5, Math.min(20, Math.floor(320 / most)));
  const left = 8, bottom = 22, top = 4;
  const full = [left + columns.length * width + 24, top + most * height + bottom];
  const floor = top + most * height;
  const here = new Set(episodes.filter((e) => e.split === "train").map((e) => `${e.step} ${e.group}`));
  const draw = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${full[0]} ${full[1]}`, width: full[0], height: full[1],
    tabindex: 0, role: "application", "aria-label": "Map of groups by step", "aria-describedby": "groupat" })) {
    svg.setAttribute(key, value);
  }
  const box = (x, y) => [left + x * width, floor - (y + 1) * height, width - (width > 5 ? 1 : 0.5), height - 1];
  const paths = map.states.map(() => "");
  let marks = "";
  columns.forEach((column, x) => column.cells.forEach(([group, state], y) => {
    const [px, py, w, h] = box(x, y);
    paths[state] += `M${px} ${py}h${w}v${h}h${-w}z`;
    if (here.has(`${column.step} ${group}`)) marks += `M${px + w / 2 - 1} ${py + h / 2}h2`;
  }));
  map.states.forEach(([name], i) => { if (paths[i]) draw("path", { class: `cell g-${name}`, d: paths[i] }); });
  if (marks) draw("path", { class: "here", d: marks });
  const every = Math.max(1, Math.ceil(64 / width));
  columns.forEach((column, x) => {
    if (x % every === 0) draw("text", { x: left + x * width, y: floor + 16 }, x ? String(column.step) : `step ${column.step}`);
  });
  const frame = draw("rect", { class: "at", width: width + 1, height: height + 1, visibility: "hidden" });
  const at = { x: columns.length - 1, y: 0 };

  const words = () => {
    const [group, state, right, members] = columns[at.x].cells[at.y];
    const known = here.has(`${columns[at.x].step} ${group}`);
    return `Step ${columns[at.x].step}, group ${group}: ${map.states[state][1]}; ${right} of ${members} right.` +
      (known ? "" : " Its episodes are not on this page: it holds a sample, rollouts.jsonl has all.");
  };
  const select = (x, y) => {
    at.x = Math.max(0, Math.min(columns.length - 1, x));
    at.y = Math.max(0, Math.min(columns[at.x].cells.length - 1, y));
    const [px, py] = box(at.x, at.y);
    frame.setAttribute("x", px - 1);
    frame.setAttribute("y", py - 1);
    frame.setAttribute("visibility", "visible");
    document.getElementById("groupat").textContent = words();
    if (px < root.scrollLeft || px + width > root.scrollLeft + root.clientWidth) root.scrollLeft = px - root.clientWidth / 2;
  };
  const place = (event) => {
    const area = svg.getBoundingClientRect();
    const x = Math.floor((event.clientX - area.left - left) / width);
    const y = Math.floor((floor - (event.clientY - area.top)) / height);
    return x >= 0 && x < columns.length && y >= 0 && y < columns[x].cells.length ? [x, y] : null;
  };
  const open = () => openGroup(columns[at.x].step, columns[at.x].cells[at.y][0], svg);

  svg.addEventListener("pointermove", (event) => {
    const spot = place(event);
    if (!spot) return hideTip();
    const [group, state, right, members] = columns[spot[0]].cells[spot[1]];
    showTip(`step ${columns[spot[0]].step}, group ${group}\n${map.states[state][1]}\n${right} of ${members} right`,
      event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("click", (event) => {
    const spot = place(event);
    if (spot) { select(...spot); open(); }
  });
  svg.addEventListener("focus", () => select(at.x, at.y));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: [1, 0], l: [1, 0], ArrowLeft: [-1, 0], h: [-1, 0], ArrowUp: [0, 1], k: [0, 1],
      ArrowDown: [0, -1], j: [0, -1], Home: [-1e6, 0], End: [1e6, 0] }[event.key];
    if (by) select(at.x + by[0], at.y + by[1]);
    else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });
  root.append(svg);
  root.scrollLeft = root.scrollWidth;
}

/** Show a group's episodes, with the table below filtered to its step. */
function openGroup(step, group, opener) {
  const first = episodes.find((e) => e.split === "train" && e.step === step && e.group === group);
  if (!first) return;
  for (const control of Object.values(controls)) control.value = "";
  controls.step.value = String(step);
  filter();
  state.opener = null;
  state.focusAfter = opener;
  openEpisode(state.filtered.findIndex((e) => e.split === "train" && e.group === group));
}

if (mapRoot && map.steps) buildMap(mapRoot);
