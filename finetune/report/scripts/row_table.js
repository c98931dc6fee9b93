// The table of the rows in the slice: views, columns, order, pages.
"use strict";

const rowsPerPage = 20;
const maxCellCharacters = 280;
const maxProbabilityColumns = 3; // with more labels, one column shows the highest probabilities
const shownProbabilities = 5;
let tableRows = new Uint32Array(); // positions of the rows of all pages, in their order
let tableRequests = 0;

const views = {
  "": { order: "-loss", rule: "" },
  errors: { order: "-confidence", rule: "Wrongly predicted rows of the slice, the highest confidence first." },
  labels: {
    order: "",
    rule: "Rows of the slice whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021). The "
      + "lowest probability of the row's own label comes first. Read a row before you change its label: a wrong "
      + "prediction looks the same.",
  },
};

/** Returns the view of the table; regression has only the view of all rows. */
function currentView() {
  const view = getState("view") ?? "";
  return rows.confidence && Object.hasOwn(views, view) && (view !== "labels" || rows.labelErrors) ? view : "";
}

// ---- Columns

/** Returns the columns: {key, title, cell(position, texts), value(position) to sort by if possible, isText}. */
function tableColumns() {
  const name = { key: "row", title: "row", value: (position) => position, cell: rowNameCell, isText: true };
  const text = { key: "text", title: "text", cell: textCell, isText: true };
  const number = (key, title, value, digits = 3) => ({
    key, title, value, cell: (position) => element("td", {}, shownNumber(value(position), digits)),
  });
  const loss = number("loss", "loss", (position) => rows.loss[position]);
  if (!rows.confidence) {
    const [value, predicted] = [rows.value, rows.predictedValue];
    return [name, text, number("label", "value", (position) => value[position]),
      number("predicted", "predicted", (position) => predicted[position]),
      number("error", "error", (position) => Math.abs(value[position] - predicted[position])), loss];
  }
  const labels = ["label", "predicted"].map((key) => ({
    key, title: key, isText: true, cell: (position) => labelCell(key, position),
    value: rows.label && ((position) => rows[key][position]),
  }));
  const confidence = number("confidence", "confidence", (position) => rows.confidence[position]);
  return [name, text, ...labels, confidence, loss, ...probabilityColumns(number)];
}

/** Returns a column per label if there are few, otherwise one column with the highest probabilities. */
function probabilityColumns(number) {
  if (rows.hasAllProbabilities && rows.numProbabilities <= maxProbabilityColumns) {
    const shown = Array.from({ length: rows.numProbabilities }, (_, label) => (
      number(`p${label}`, `p(${visibleText(rows.labels[label])})`, (position) => rows.probability(position, label))
    ));
    return rows.isComplement ? shown.slice(1) : shown;
  }
  const highest = (position) => element("td", { class: "text probabilities" }, ...highestProbabilities(position, shownProbabilities)
    .map(([label, value]) => element("div", {}, `${shownNumber(value)} `, isolated(rows.labels[label]))));
  return [{ key: "probabilities", title: "highest probabilities", cell: highest, isText: true }];
}

/** Returns [label, probability] of the labels with the highest probabilities of a row. */
function highestProbabilities(position, count) {
  return Array.from({ length: rows.numProbabilities }, (_, label) => [label, rows.probability(position, label)])
    .filter(([, value]) => value !== null).sort((first, second) => second[1] - first[1]).slice(0, count);
}

/** Returns a number with some digits after the point, or a dash. */
function shownNumber(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  return Math.abs(value) >= 1e6 ? value.toExponential(digits) : value.toFixed(digits);
}

/** Returns a text in an element of its own, so that its writing direction changes nothing outside. */
function isolated(text) {
  return element("bdi", {}, visibleText(text));
}

function rowNameCell(position) {
  const title = `${rows.splits[rows.split[position]]} ${rows.row[position]}`;
  return element("td", { class: "text" }, element("button", { type: "button", class: "row-name" }, visibleText(title)));
}

function labelCell(key, position) {
  return element("td", { class: "text" }, ...labelNames(key, position).flatMap((name, index) => (
    index ? [", ", isolated(name)] : [isolated(name)]
  )));
}

/** Returns the names of the labels (key "label") or predicted labels ("predicted") of a row. */
function labelNames(key, position) {
  if (rows.label) return [rows.labels[rows[key][position]]];
  const sets = key === "label" ? rows.labelSets(position) : rows.predictedSets(position);
  return sets.length ? Array.from(sets, (label) => rows.labels[label]) : ["none"];
}

function textCell(position, texts) {
  if (!texts) return element("td", { class: "words soft" }, rows.texts.fields ? "not in this page" : "–");
  return element("td", { class: "words" }, ...texts.map((text) => {
    const isCut = text.length > maxCellCharacters;
    return element("div", {}, isolated(isCut ? `${text.slice(0, maxCellCharacters)} …` : text));
  }));
}

// ---- Order

/** Returns positions sorted by a value of each; rows with equal values keep the order of their positions. */
function sortedRows(positions, value, descending) {
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  const scale = 2 ** Math.ceil(Math.log2(Math.max(rows.count, 2)));
  const dropped = Math.max(0, 32 + Math.log2(scale) - 53); // value and position share the 53 bits of a number
  const keys = Float64Array.from(positions, (position) => {
    float[0] = value(position);
    let order = (bits[0] >>> 31 ? ~bits[0] : bits[0] | 0x80000000) >>> 0; // unsigned order is that of the floats
    if (descending) order = 0xffffffff - order;
    return (order >>> dropped) * scale + position;
  });
  return Uint32Array.from(keys.sort(), (key) => key % scale);
}

/** Returns the rows of a slice that a view shows, in the order of the state. */
function orderedRows(positions) {
  const view = currentView();
  const order = getState("sort") ?? views[view].order;
  let chosen = positions;
  if (view === "errors") chosen = filtered(positions, (position) => rows.correct(position) === false);
  if (view === "labels") {
    const inSlice = new Set(positions);
    chosen = rows.labelErrors.filter((position) => inSlice.has(position)); // the most likely first
  }
  const column = tableColumns().find(({ key, value }) => value && key === order.replace("-", ""));
  return column ? sortedRows(chosen, column.value, order.startsWith("-")) : chosen;
}

// ---- The table

/** Returns the number of pages. */
function numPages() {
  return Math.max(1, Math.ceil(tableRows.length / rowsPerPage));
}

/** Shows the current page of the table. */
async function showPage() {
  const request = ++tableRequests;
  const page = Math.min(Math.max(1, Number(getState("page")) || 1), numPages());
  const positions = [...tableRows.subarray((page - 1) * rowsPerPage, page * rowsPerPage)];
  const texts = await Promise.all(positions.map((position) => rows.textFields(position)));
  if (request !== tableRequests) return;
  const columns = tableColumns();
  const order = getState("sort") ?? views[currentView()].order;
  const place = document.getElementById("row-table");
  const focused = place.tHead.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.tHead.replaceChildren(element("tr", {}, ...columns.map((column) => columnHeader(column, order))));
  if (focused) place.tHead.querySelector(`[data-key="${focused}"]`)?.focus();
  place.tBodies[0].replaceChildren(...positions.map((position, index) => element(
    "tr", { "data-position": position, onclick: () => setState({ row: position }) },
    ...columns.map((column) => column.cell(position, texts[index])),
  )));
  document.getElementById("row-page").textContent = `Page ${page.toLocaleString("en")} of ${numPages().toLocaleString("en")}`;
  for (const [name, target] of [["first", 1], ["previous", page - 1], ["next", page + 1], ["last", numPages()]]) {
    const button = document.getElementById(`row-${name}`);
    button.disabled = target === page || target < 1 || target > numPages();
    button.value = target;
  }
  if (document.activeElement.disabled) document.getElementById(page === 1 ? "row-next" : "row-previous").focus();
  markChosenRow();
}

/** Returns the header of a column; a button in it sorts by the column. */
function columnHeader({ key, title, value, isText }, order) {
  if (!value) return element("th", { class: "text", scope: "col" }, title);
  const isSorted = order.replace("-", "") === key;
  const sort = !isSorted || !order.startsWith("-") ? `-${key}` : key;
  return element(
    "th",
    {
      scope: "col", class: isText ? "text" : null, "data-sort": "",
      "aria-sort": isSorted ? (order.startsWith("-") ? "descending" : "ascending") : null,
    },
    element("button", { type: "button", "data-key": key, onclick: () => setState({ sort, page: null }) }, title),
  );
}

/** Shows which row is chosen, if it is on the page. */
function markChosenRow() {
  for (const line of document.querySelectorAll("#row-table tbody tr")) {
    const isChosen = line.dataset.position === getState("row");
    line.classList.toggle("chosen", isChosen);
    line.querySelector("button").setAttribute("aria-pressed", String(isChosen));
  }
}

/** Returns which texts are in the page, if not all are. */
function embeddedTextsNote() {
  const { embedded, first, firstEmbedded } = rows.texts;
  const [wrong, wrongWithText, others] = [first, firstEmbedded, embedded - firstEmbedded].map((count) => count.toLocaleString("en"));
  return `This page contains the texts of ${wrongWithText} of the ${wrong} rows that were predicted wrongly or probably have the wrong `
    + `label, and of ${others} other rows, chosen at random. The other texts are in predictions.parquet in the run folder.`;
}

/** Selects and orders the rows of the table again, and shows them. */
async function updateTable() {
  tableRows = orderedRows(currentSlice);
  const view = currentView();
  for (const button of document.querySelectorAll("#errors [data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  const none = view === "errors" && currentSlice.length ? "Every row of the slice was predicted correctly." : "No rows.";
  document.getElementById("row-rule").textContent = views[view].rule;
  document.getElementById("row-count").textContent = tableRows.length ? `${tableRows.length.toLocaleString("en")} rows` : none;
  document.getElementById("row-download").disabled = tableRows.length === 0;
  await showPage();
}

onStart(() => {
  if (!rows || !document.getElementById("row-table")) return;
  for (const button of document.querySelectorAll("#errors [data-view]")) {
    button.hidden = (!rows.confidence && button.dataset.view !== "") || (button.dataset.view === "labels" && !rows.labelErrors);
    button.addEventListener("click", () => setState({ view: button.dataset.view, sort: null, page: null }));
  }
  for (const name of ["first", "previous", "next", "last"]) {
    document.getElementById(`row-${name}`).addEventListener("click", ({ target }) => setState({ page: target.value }));
  }
  if (hasSomeTexts()) document.getElementById("row-texts").textContent = embeddedTextsNote();
  document.getElementById("row-download").addEventListener("click", downloadRows);
  onSlice(updateTable);
  onState(["view", "sort"], updateTable);
  onState(["page"], showPage);
  onState(["row"], showRow);
});
