// The scores of the slice beside those of whole splits, and the table of the classes.
"use strict";

/** Returns a number with so many decimals, or with two significant digits if it would be shown as 0. */
function scoreText(value, digits) {
  const size = Math.abs(value);
  return size > 1e-12 && size < 0.5 * 10 ** -digits ? value.toPrecision(2) : value.toFixed(digits);
}

/** Returns the parts of a table cell: a value and its interval. */
function estimateParts({ value, low, high, note }, digits) {
  const number = value === null ? "undefined" : scoreText(value, digits);
  const interval = low === null ? "–" : `[${scoreText(low, 3)}, ${scoreText(high, 3)}]`;
  return [`${number} `, element("span", note ? { class: "soft", title: note } : { class: "soft" }, interval)];
}

/** Returns the mean loss of rows, or "–". */
function meanLoss(positions) {
  let sum = 0;
  for (const position of positions) sum += rows.loss[position];
  return positions.length ? (sum / positions.length).toFixed(4) : "–";
}

/** Adds the metrics that the run did not store to the table of scores, computed from the rows of each split. */
function addOtherMetrics(table) {
  const splits = [...table.tHead.rows[0].cells].slice(1).map((cell) => {
    const split = rows.splits.indexOf(cell.dataset.split);
    return scoresOf(rows, Uint32Array.from(rows.split.keys()).filter((position) => rows.split[position] === split));
  });
  const names = Object.keys(splits[0].metrics).filter((name) => !table.querySelector(`[data-metric="${name}"]`));
  table.querySelector('[data-metric="loss"]').before(...names.map((name) => element(
    "tr", { "data-metric": name }, element("td", { class: "text" }, name.replaceAll("_", " ")),
    ...splits.map(({ metrics }) => element("td", {}, ...estimateParts(metrics[name], 4))),
  )));
}

/** Returns why the slice has no intervals, or the metrics that have none, or "". */
function intervalNotes({ rows: count, metrics }) {
  if (intervalNote(count)) return `${capitalized(intervalNote(count))}.`;
  const notes = Object.entries(metrics).filter(([, { note }]) => note);
  return notes.map(([name, { note }]) => `${capitalized(name.replaceAll("_", " "))}: ${note}.`).join(" ");
}

/** Returns a warning if the choice of the rows decides some of their scores, or "". */
function choiceWarning() {
  if (["label", "predicted", "outcome"].every((key) => getState(key) === null)) return "";
  return " The choice by outcome, label or prediction decides some scores: rows of one outcome are all right or all wrong, the "
    + "precision of a label is 1 or 0 if every row has it, and its recall is 1 or 0 if it is predicted for every row.";
}

/** Shows the scores of the slice in the last column of the table; a whole split has a column already. */
function showScores(table, positions, scores) {
  const isShown = splitOfSlice(positions) === null;
  table.querySelectorAll(".slice-cell").forEach((cell) => cell.remove());
  document.getElementById("score-method").textContent = isShown
    ? intervalNotes(scores) + choiceWarning() + wholeSplitsOnly(table, scores) : "";
  if (!isShown) return;
  table.tHead.rows[0].append(element("th", { class: "slice-cell" }, sliceTitle(positions)));
  for (const row of table.tBodies[0].rows) {
    const name = row.dataset.metric;
    row.append(element("td", { class: "slice-cell" }, ...sliceParts(name, positions, scores)));
  }
}

/** Returns the parts of a cell for the slice. The page computes the metrics of the toolkit only. */
function sliceParts(name, positions, scores) {
  if (name === "loss") return [meanLoss(positions)];
  return scores.metrics[name] ? estimateParts(scores.metrics[name], 4) : ["–"];
}

/** Returns which metrics of the table are not computed for the slice, or "". */
function wholeSplitsOnly(table, scores) {
  const names = [...table.tBodies[0].rows].map((row) => row.dataset.metric)
    .filter((name) => name !== "loss" && !scores.metrics[name]).map((name) => name.replaceAll("_", " "));
  return names.length ? ` For whole splits only: ${names.join(", ")}.` : "";
}

/** Returns a row of the table of the classes. */
function classRow({ label, rows: count, predicted, precision, recall, f1 }, positions, hasAverage) {
  const estimates = count || predicted ? [precision, recall, f1] : Array(3).fill(noEstimate);
  if (hasAverage) estimates.push({ ...noEstimate, value: averagePrecision(positions, rows.labels.indexOf(label)) });
  const cells = estimates.map((estimate) => (
    element("td", { "data-value": estimate.value }, ...estimateParts(estimate, 3))
  ));
  return element(
    "tr", {}, element("td", { class: "text" }, stateLink({ label }, label)),
    element("td", { "data-value": count }, count.toLocaleString("en")), ...cells,
  );
}

/** Returns the rows that the table of the classes has at the start, after making links of the labels. */
function storedClassRows(table) {
  const stored = [...table.tBodies[0].rows];
  for (const { cells: [cell] } of stored) cell.replaceChildren(stateLink({ label: cell.textContent }, cell.textContent));
  return stored;
}

onStart(() => {
  const scoreTable = document.getElementById("score-table");
  const classTable = document.getElementById("class-table");
  if (!rows || !scoreTable) return;
  addOtherMetrics(scoreTable);
  const stored = classTable && storedClassRows(classTable);
  const hasAverage = classTable?.tHead.rows[0].cells.length > 5; // a column that pages of earlier runs do not have
  onSlice((positions) => {
    const scores = scoresOf(rows, positions);
    showScores(scoreTable, positions, scores);
    if (!classTable) return;
    document.getElementById("class-rows").textContent = capitalized(sliceTitle(positions));
    const isStored = splitOfSlice(positions) === rows.shownSplit;
    keepingFocus(classTable.tBodies[0], () => {
      classTable.tBodies[0].replaceChildren(...(isStored ? stored : scores.classes.map((row) => classRow(row, positions, hasAverage))));
      sortAgain(classTable);
    });
  });
});
