// What the page does beyond showing: colours, arrow keys, looking again. It reads without it, too.
"use strict";

const root = document.documentElement;
const main = document.getElementById("main");
const every = Number(document.body.dataset.every) * 1000;
let token = document.body.dataset.token;
const lost = document.getElementById("lost");

// Light, dark, or as the system has it.
const themes = ["", "light", "dark"];
const named = { "": "as the system", light: "light", dark: "dark" };
const themeButton = document.getElementById("theme");
function remembered() {
  try { return localStorage.getItem("theme") || ""; } catch { return ""; }
}
function setTheme(theme) {
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  themeButton.textContent = `Theme: ${named[theme]}`;
  try { localStorage.setItem("theme", theme); } catch { /* Not remembered, then. */ }
}
setTheme(themes.includes(remembered()) ? remembered() : "");
themeButton.addEventListener("click", () => {
  setTheme(themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length]);
});
document.querySelector(".controls").hidden = false;

// What a cell says, under the mouse or the arrow keys.
function tell(cell) {
  const output = document.querySelector(`output[data-of="${cell.closest("table").id}"]`);
  if (output) output.textContent = cell.title || "Not measured here.";
}
function cellsOf(table) {
  return [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
}
function enter() {
  for (const table of main.querySelectorAll("table.heat")) {
    const first = table.querySelector("tbody td");
    if (first) first.tabIndex = 0;
  }
}
function moveTo(table, cell) {
  for (const one of table.querySelectorAll("td[tabindex]")) one.removeAttribute("tabindex");
  cell.tabIndex = 0;
  cell.focus();
}
main.addEventListener("mouseover", (event) => {
  const cell = event.target.closest("table.heat td");
  if (cell) tell(cell);
});
main.addEventListener("focusin", (event) => {
  if (event.target.matches("table.heat td")) tell(event.target);
});
main.addEventListener("keydown", (event) => {
  const cell = event.target.closest("table.heat td");
  if (!cell) return;
  const table = cell.closest("table");
  const cells = cellsOf(table);
  const row = cell.parentElement.sectionRowIndex;
  const column = cells[row].indexOf(cell);
  const last = cells[row].length - 1;
  const to = {
    ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
    Home: [row, 0], End: [row, last], PageUp: [0, column], PageDown: [cells.length - 1, column],
  }[event.key];
  if (event.key === "Enter") {
    const link = table.querySelectorAll("thead th.time")[column].querySelector("a");
    if (link) link.click();
  }
  if (!to) return;
  event.preventDefault();
  const next = cells[to[0]] && cells[to[0]][to[1]];
  if (next) moveTo(table, next);
});

// Several columns, dragged over.
let dragged = null;
function between(first, last) {
  const heads = [...first.parentElement.querySelectorAll("th.time")];
  const ends = [heads.indexOf(first), heads.indexOf(last)].sort((a, b) => a - b);
  return heads.slice(ends[0], ends[1] + 1);
}
main.addEventListener("dragstart", (event) => {
  if (event.target.closest("th.time")) event.preventDefault();
});
main.addEventListener("pointerdown", (event) => {
  const head = event.target.closest("th.time");
  if (head && event.button === 0 && event.pointerType === "mouse") dragged = head;
});
main.addEventListener("pointerover", (event) => {
  const head = event.target.closest("th.time");
  if (!dragged || !head || head.parentElement !== dragged.parentElement) return;
  for (const one of main.querySelectorAll("th.chosen")) one.classList.remove("chosen");
  for (const one of between(dragged, head)) one.classList.add("chosen");
});
addEventListener("pointerup", (event) => {
  const head = event.target.closest && event.target.closest("th.time");
  if (dragged && head && head !== dragged && head.parentElement === dragged.parentElement) {
    const chosen = between(dragged, head);
    const address = new URL(location.href);
    address.searchParams.delete("last");
    address.searchParams.set("since", chosen[0].dataset.start);
    address.searchParams.set("until", chosen[chosen.length - 1].dataset.end);
    location.assign(address);
  }
  dragged = null;
  for (const one of main.querySelectorAll("th.chosen")) one.classList.remove("chosen");
});

// Look again while something comes in, somebody looks, and nobody said to wait.
const pauseButton = document.getElementById("pause");
let paused = false;
pauseButton.addEventListener("click", () => {
  paused = !paused;
  pauseButton.setAttribute("aria-pressed", String(paused));
  pauseButton.textContent = paused ? "Go on" : "Pause";
});
function placeOf(element) {
  if (!element || !main.contains(element)) return null;
  if (element.id) return { id: element.id, value: element.value };
  const table = element.closest("table[id]");
  const cell = element.closest("td, th");
  if (!table || !cell) return null;
  return { table: table.id, row: cell.parentElement.rowIndex, column: cell.cellIndex, link: element !== cell };
}
function find(place) {
  if (!place) return null;
  if (place.id) return document.getElementById(place.id);
  const table = document.getElementById(place.table);
  const row = table && table.rows[place.row];
  const cell = row && row.cells[place.column];
  return cell && place.link ? cell.querySelector("a") : cell;
}
function show(fresh) {
  const place = placeOf(document.activeElement);
  const scrolled = [...main.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  const typed = [...main.querySelectorAll("input[id]")].map((one) => [one.id, one.value]);
  const [x, y] = [scrollX, scrollY];
  main.replaceChildren(...fresh.getElementById("main").childNodes);
  enter();
  for (const [id, value] of typed) {
    const input = document.getElementById(id);
    if (input) input.value = value;
  }
  main.querySelectorAll(".scroll").forEach((one, number) => { one.scrollLeft = scrolled[number] || 0; });
  const again = find(place);
  if (again) {
    if (again.matches("table.heat td")) moveTo(again.closest("table"), again);
    else again.focus({ preventScroll: true });
  }
  scrollTo(x, y);
}
async function look() {
  let wait = every;
  if (!paused && !document.hidden && !dragged) {
    const began = performance.now();
    try {
      const state = await (await fetch("/api/state")).json();
      if (state.token !== token) {
        const answer = await fetch(location.href);
        if (answer.redirected) {
          location.replace(answer.url);
          return;
        }
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (!paused && !dragged) {
          show(fresh);
          token = fresh.body.dataset.token;
        }
      }
      lost.hidden = true;
    } catch {
      // Ended, or on its way back: what is shown stays.
      lost.hidden = false;
    }
    // What takes the server long is asked less often.
    wait = Math.max(every, 4 * (performance.now() - began));
  }
  setTimeout(look, wait);
}
enter();
if ("live" in document.body.dataset) setTimeout(look, every);
else pauseButton.hidden = true;
