// One row with its whole text and all of its probabilities, and the download of the rows of the table.
"use strict";

const csvBlock = 5000; // rows at a time

/** @type {((position: number) => HTMLElement[])[]} what other sections show of a chosen row */
const rowDetailParts = [];

/** Returns a text in which characters that cannot be seen, or that change the direction of the text, are visible. */
function visibleText(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (control) => String.fromCharCode(0x2400 + control.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (control) => (
      `[U+${control.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`
    ));
}

/** Returns the position of the row of the state, or null. */
function rowOfState() {
  const position = getState("row");
  return /^\d+$/.test(position ?? "") && Number(position) < rows.count ? Number(position) : null;
}

/** Shows the row of the state below the table. */
async function showRow() {
  markChosenRow();
  const place = document.getElementById("row-details");
  const position = rowOfState();
  const texts = position === null ? null : await rows.textFields(position);
  if (rowOfState() !== position) return;
  place.hidden = position === null;
  if (position !== null) place.replaceChildren(...rowDetails(position, texts));
}

/** Hides the details of a row; the focus goes to the row in the table, or below it if the row is on another page. */
function closeRow(position) {
  setState({ row: null });
  const button = document.querySelector(`#row-table [data-position="${position}"] button`);
  (button ?? document.getElementById("row-download")).focus({ preventScroll: true });
}

// A link to a row shows it below the table, and keeps the rest of the state.
document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[data-row]");
  if (!link || !rows) return;
  event.preventDefault();
  setState({ row: link.dataset.row });
  await showRow();
  goTo(document.getElementById("row-details"));
});

/** Returns the elements that describe a row. */
function rowDetails(position, texts) {
  const close = element("button", { type: "button", onclick: () => closeRow(position) }, "Close");
  const title = element("h3", {}, visibleText(`${rows.splits[rows.split[position]]} row ${rows.row[position]}`));
  const missing = rows.texts.fields ? "The text of this row is in predictions.parquet, not in this page." : "";
  const shown = texts ? texts.map((text) => element("p", { class: "row-text", tabindex: "0" }, isolated(text))) : [element("p", {}, missing)];
  const others = rowDetailParts.flatMap((part) => part(position));
  return [element("div", { class: "controls" }, title, close), ...shown, ...others, ...(rows.confidence ? [probabilityTable(position)] : [])];
}

/** Returns a table with the probabilities of a row, highest first. */
function probabilityTable(position) {
  const [labels, predicted] = ["label", "predicted"].map((key) => labelNames(key, position));
  const lines = highestProbabilities(position, Infinity).map(([label, value]) => {
    const name = rows.labels[label];
    const roles = [labels.includes(name) && "label", predicted.includes(name) && "predicted"].filter(Boolean);
    const bar = element("span", { class: "probability-bar", style: `width: ${(100 * value).toFixed(1)}%` });
    return element(
      "tr", {}, element("th", { scope: "row", class: "text" }, isolated(name)), element("td", { class: "text" }, roles.join(", ")),
      element("td", {}, shownNumber(value, 4)), element("td", { class: "probability" }, bar),
    );
  });
  const heads = [["label", "text"], ["of the row", "text"], ["probability", null]].map(([name, kind]) => (
    element("th", { scope: "col", class: kind, colspan: kind ? null : 2 }, name)
  ));
  return element(
    "div", { class: "scroll long", tabindex: "0", role: "region", "aria-label": "Probabilities of the row" },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines)),
  );
}

// ---- Download

/** Returns a text as a cell of a csv file; a spreadsheet must not run it as a formula (OWASP, "CSV Injection"). */
function csvCell(text) {
  const safe = /^[=+\-@\t\r\n＝＋－＠]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

/** Returns the names of the columns of the csv file. */
function csvHeader() {
  const texts = ["text", "text_1"].slice(0, rows.texts.fields);
  const probabilities = rows.confidence ? rows.labels.slice(0, rows.numProbabilities).map((name) => `probability ${name}`) : [];
  const confidence = rows.confidence ? ["confidence"] : [];
  return ["split", "row", ...texts, "label", "predicted", ...confidence, "loss", ...probabilities].map(csvCell).join(",");
}

/** Returns a row as a line of the csv file. */
async function csvLine(position) {
  const texts = (await rows.textFields(position)) ?? Array(rows.texts.fields).fill("");
  const number = (value) => (value === null || Number.isNaN(value) ? "" : String(Number(value.toPrecision(6))));
  const cells = [csvCell(rows.splits[rows.split[position]]), rows.row[position], ...texts.map(csvCell)];
  if (!rows.confidence) cells.push(number(rows.value[position]), number(rows.predictedValue[position]), number(rows.loss[position]));
  else {
    cells.push(...["label", "predicted"].map((key) => csvCell(labelNames(key, position).join("; "))));
    cells.push(number(rows.confidence[position]), number(rows.loss[position]));
    for (let label = 0; label < rows.numProbabilities; label++) cells.push(number(rows.probability(position, label)));
  }
  return cells.join(",");
}

/** Returns the rows at some positions as a csv file. */
async function csvFile(positions) {
  const parts = [`${csvHeader()}\r\n`];
  for (let start = 0; start < positions.length; start += csvBlock) {
    const lines = await Promise.all([...positions.subarray(start, start + csvBlock)].map(csvLine));
    parts.push(`${lines.join("\r\n")}\r\n`);
  }
  return new Blob(parts, { type: "text/csv;charset=utf-8" });
}

/** Saves the rows of all pages of the table. */
async function downloadRows() {
  const address = URL.createObjectURL(await csvFile(tableRows));
  element("a", { href: address, download: "rows.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
