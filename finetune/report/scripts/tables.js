// Tables whose columns the reader can sort: a `<table class="sortable">` with `<th data-sort>` in its head.
"use strict";

/** Returns the values of a column, numbers as numbers; `data-value` of a cell comes before its text. */
function columnValues(rows, column) {
  return rows.map((row) => {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  });
}

/** Compares two values: numbers by size, texts by alphabet, an empty text or a text after all numbers. */
function compareValues(first, second, ascending) {
  const [textFirst, textSecond] = [typeof first === "string", typeof second === "string"];
  if (textFirst !== textSecond) return textFirst ? 1 : -1;
  const order = textFirst ? first.localeCompare(second, undefined, { numeric: true }) : first - second;
  return ascending ? order : -order;
}

/** Sorts a table by the column of a header. */
function sortRows(header, ascending) {
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows];
  const values = columnValues(rows, header.cellIndex);
  const order = rows.map((_, index) => index).sort((a, b) => compareValues(values[a], values[b], ascending));
  body.append(...order.map((index) => rows[index]));
}

/** Sorts a table by the column of a header, and by the other direction if it is sorted by it already. */
function sortByColumn(header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  sortRows(header, ascending);
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

/** Sorts a table whose rows were replaced as the reader has sorted it before. */
function sortAgain(table) {
  const header = table.tHead.querySelector("[aria-sort]");
  if (header) sortRows(header, header.getAttribute("aria-sort") === "ascending");
}

/** Puts a button into each sortable header of a table. */
function makeSortable(table) {
  for (const header of table.querySelectorAll("th[data-sort]")) {
    const button = element("button", { type: "button", onclick: () => sortByColumn(header) }, ...header.childNodes);
    header.append(button);
  }
}

onStart(() => document.querySelectorAll("table.sortable").forEach(makeSortable));
