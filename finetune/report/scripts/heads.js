// Maps of heads: which method is shown, moving through a map with the keyboard, choosing a head.
//
// A map is a table of head_map.html. Arrow keys move through it, Enter or a click chooses a head, which is kept in the
// state of the page as "layer.head" and marked in every map.
"use strict";

/**
 * @typedef {[text: string, level: number, uncertain: 0|1, title: string]} MapCell
 * @typedef {{key: string, name: string, note: string, legend: string, signed: boolean, hatched: boolean, cells: (MapCell|null)[][]}} HeadMap
 */

/** @type {{ranking: [number, number][], maps: HeadMap[], changes: HeadMap[], partners: Record<string, string>} | null} data of head_data.py */
let headData = null;

/** Returns "layer 2, head 5" for "2.5". */
function headName(head) {
  const [layer, number] = head.split(".");
  return `layer ${layer}, head ${number}`;
}

/** Returns the chosen head, or the most important one if none is chosen or the model does not have it. */
function chosenHead() {
  const [layer, number] = (getState("head") ?? "").split(".");
  if (headData.maps[0].cells[layer]?.[number]) return `${Number(layer)}.${Number(number)}`;
  return headData.ranking.length ? headData.ranking[0].join(".") : null;
}

/** Returns the cell of a head in a map, or null. */
function cellOf(map, head) {
  const [layer, number] = head.split(".");
  return map.cells[layer]?.[number] ?? null;
}

/** Shows a value in a cell of a table. */
function fillCell(cell, [text, level, uncertain, title]) {
  cell.textContent = text;
  cell.title = title;
  cell.classList.toggle("hurts", level < 0);
  cell.classList.toggle("helps", level >= 0);
  cell.classList.toggle("uncertain", Boolean(uncertain));
  cell.style.setProperty("--level", Math.abs(level));
}

/** Shows the values of a map in a table that has a cell for each of its heads. */
function fillMap(table, map) {
  for (const cell of table.querySelectorAll("[data-head]")) fillCell(cell, cellOf(map, cell.dataset.head));
}

/** Returns the cell that an arrow key leads to from a cell, or null. */
function neighborCell(cell, key) {
  const row = cell.parentNode;
  const rows = row.parentNode.rows;
  const at = (line, column) => rows[line]?.cells[column];
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (key === "Home") return row.querySelector("[data-head]");
  if (key === "End") return [...row.querySelectorAll("[data-head]")].pop();
  if (!steps[key]) return null;
  let [line, column] = [row.sectionRowIndex, cell.cellIndex];
  do {
    line += steps[key][0];
    column += steps[key][1];
  } while (at(line, column) && !at(line, column).dataset.head); // skips heads that a pruned layer does not have
  return at(line, column)?.dataset.head ? at(line, column) : null;
}

/** Makes the cells of a map reachable: one of them by Tab, the others from there with the arrow keys. */
function enableHeadMap(table) {
  const readout = element("p", { class: "head-readout soft", "aria-live": "polite" });
  table.parentNode.after(readout);
  const show = (cell) => { readout.textContent = `${headName(cell.dataset.head)}: ${cell.title}`; };
  const choose = (cell) => setState({ head: cell.dataset.head });
  const onCell = (listener) => (event) => {
    const cell = event.target.closest("[data-head]");
    if (cell) listener(cell, event);
  };
  table.setAttribute("role", "grid");
  for (const cell of table.querySelectorAll("[data-head]")) cell.setAttribute("role", "gridcell");
  table.addEventListener("click", onCell(choose));
  table.addEventListener("mouseover", onCell(show));
  table.addEventListener("focusin", onCell(show));
  table.addEventListener("mouseleave", () => show(table.querySelector('[tabindex="0"]')));
  table.addEventListener("keydown", onCell((cell, event) => {
    if (event.key === "Enter" || event.key === " ") choose(cell);
    else if (!focusCell(table, neighborCell(cell, event.key))) return;
    event.preventDefault();
  }));
  table.showReadout = () => show(table.querySelector('[tabindex="0"]'));
}

/** Moves the focus to a cell; returns false for null. */
function focusCell(table, cell) {
  if (!cell) return false;
  for (const other of table.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
  cell.setAttribute("tabindex", "0");
  cell.focus();
  return true;
}

/** Marks the chosen head in every map. */
function markChosenHead() {
  const chosen = chosenHead();
  for (const table of document.querySelectorAll(".head-map")) {
    for (const cell of table.querySelectorAll("[data-head]")) {
      const isChosen = cell.dataset.head === chosen;
      cell.setAttribute("aria-selected", isChosen);
      cell.classList.toggle("partner", cell.dataset.head === headData.partners[chosen]);
      cell.setAttribute("tabindex", isChosen ? "0" : "-1");
    }
    if (!table.contains(document.activeElement)) table.showReadout();
  }
}

/** Shows the map of the method in the state of the page, or of the first method. */
function showMethod() {
  const map = headData.maps.find((each) => each.key === getState("method")) ?? headData.maps[0];
  const table = document.getElementById("head-importance");
  document.getElementById("method").value = map.key;
  document.getElementById("head-map-note").textContent = map.note;
  const legend = document.getElementById("head-map-legend");
  legend.querySelector(".swatch").className = `swatch ${map.signed ? "both" : "ramp"}`;
  legend.querySelector(".meaning").textContent = map.legend;
  legend.querySelector(".hatched").hidden = !map.hatched;
  fillMap(table, map);
  table.showReadout();
}

onStart(async () => {
  if (!document.getElementById("head-data")) return;
  headData = await unpackJson("head-data");
  for (const table of document.querySelectorAll(".head-map")) enableHeadMap(table);
  onState(["head"], markChosenHead);
  document.getElementById("head-method").hidden = headData.maps.length < 2;
  document.getElementById("method").addEventListener("change", (event) => setState({ method: event.target.value }));
  onState(["method"], showMethod);
});
