"use strict";
// One page at a time, the keys that lead to them, and a page that loads itself again while a run goes on.

const parts = [...document.querySelectorAll(".part")];
const links = [...document.querySelectorAll("nav a")];
const partOf = (hash) => {
  const target = hash.length > 1 ? document.getElementById(decodeURIComponent(hash.slice(1))) : null;
  return target?.closest(".part") ?? parts[0];
};

function showPart() {
  const chosen = partOf(location.hash);
  for (const part of parts) part.hidden = part !== chosen;
  for (const link of links) {
    if (link.hash === `#${chosen.id}`) {
      link.setAttribute("aria-current", "page");
      // scrollIntoView would move the page too
      const bar = link.parentElement;
      bar.scrollLeft = link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
    } else link.removeAttribute("aria-current");
  }
  const groups = document.getElementById("groupmap");
  if (groups && chosen.contains(groups) && !groups.dataset.seen) {
    groups.dataset.seen = "yes";
    groups.scrollLeft = groups.scrollWidth;
  }
}

/** Show what the address names: a page from its top, or a place inside one. */
function go() {
  showPart();
  hideTip();
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && !target.matches(".part")) target.scrollIntoView();
  else scrollTo(0, 0);
}

if (parts.length) {
  document.documentElement.classList.add("paged");
  addEventListener("popstate", go); // back, forward, and an address that was typed
  addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#part-"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (link.hash !== location.hash) history.pushState(null, "", link.hash);
    go();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.target.closest?.("input, select, textarea, svg, tbody")) return;
    const now = links.findIndex((link) => link.getAttribute("aria-current"));
    const wanted = event.key === "]" ? now + 1 : event.key === "[" ? now - 1 : /^[1-9]$/.test(event.key) ? event.key - 1 : null;
    if (wanted !== null && links[wanted]) links[wanted].click();
  });
  showPart();
  // The browser goes to the page's own place, below the title; it shall begin at the top.
  addEventListener("load", () => {
    if (!kept && partOf(location.hash).id === location.hash.slice(1)) scrollTo(0, 0);
  });
}

// ---- keeping the reader's place over a reload

const keepable = () => [...document.querySelectorAll("details")];

function place() {
  const open = dialog.open && state.open >= 0 ? state.filtered[state.open] : null;
  return {
    y: scrollY,
    details: keepable().map((box) => box.open),
    filters: Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value])),
    page: state.page,
    episode: open && [open.split, open.step, open.group, open.member],
  };
}

function restore(kept) {
  keepable().forEach((box, i, all) => { if (all.length === kept.details.length) box.open = kept.details[i]; });
  for (const [name, value] of Object.entries(kept.filters)) if (controls[name]) controls[name].value = value;
  if (browser) {
    filter();
    state.page = Math.min(kept.page, Math.max(0, Math.ceil(state.filtered.length / PAGE) - 1));
    show();
  }
  if (kept.episode) {
    const index = state.filtered.findIndex((e) => [e.split, e.step, e.group, e.member].join() === kept.episode.join());
    openEpisode(index);
  }
  scrollTo(0, kept.y);
}

// Kept beside the page and not in its history: an entry that changes while the page is left can stop the next load.
const drawer = `threefold place ${location.pathname}`;
const cameBack = ["reload", "back_forward"].includes(performance.getEntriesByType("navigation")[0]?.type);

function lastPlace() {
  try { return JSON.parse(sessionStorage.getItem(drawer)); } catch { return null; } // storage can be forbidden
}

addEventListener("pagehide", () => {
  try { sessionStorage.setItem(drawer, JSON.stringify(place())); } catch { /* the next load begins at the top */ }
});
const kept = cameBack ? lastPlace() : null;
if (kept) restore(kept);

const seconds = Number(document.documentElement.dataset.reload);
if (seconds > 0) {
  const button = element("button", { type: "button", id: "watching" });
  let paused = false;
  const name = () => {
    button.textContent = paused ? "Paused: load again by itself" : `Loads itself again every ${seconds} s: pause`;
    button.setAttribute("aria-pressed", String(paused));
  };
  button.addEventListener("click", () => { paused = !paused; name(); });
  name();
  document.querySelector("header").append(button);
  const busy = () => paused || dialog.open || document.hidden || getSelection().toString() ||
    document.activeElement.matches("input, select");
  const again = () => { if (busy()) setTimeout(again, 1000); else location.reload(); };
  setTimeout(again, 1000 * seconds);
}
