// The 95 % intervals of classification metrics, by the formulas of evaluation/intervals.py and evaluation/influence.py.
"use strict";

const MIN_ROWS = 10; // fewer rows show too little about the spread of a metric
const BORROWED_ROWS = 4; // of a class with the error rate of all classes, for the variance
const MIN_CLASS_ROWS = 12; // that decide the variance of macro F1
const FEW_CLASS_ROWS = 5; // of most classes
const MAX_FEW_CLASSES = 0.5; // share of the classes
const STEP = 1e-3; // rows by which a count is changed for a derivative
const COUNT_FIELDS = ["hits", "predicted", "actual"];

/** Returns the sum of the terms of all numbers below `count`. */
function sumOver(count, term) {
  let sum = 0;
  for (let index = 0; index < count; index++) sum += term(index);
  return sum;
}

/** Returns the value limited to a range. */
function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

/** Returns why there are no intervals, or "" if there are. */
function intervalNote(count) {
  const counted = count === 1 ? "1 row is" : `${count} rows are`;
  return count < MIN_ROWS ? `${counted} too few for an interval (at least ${MIN_ROWS})` : "";
}

/** Returns the interval of Jeffreys of a share, [low, high]. */
function shareInterval(successes, trials) {
  const [a, b] = [successes + 0.5, trials - successes + 0.5];
  return [successes <= 0 ? 0 : betaQuantile(0.025, a, b), successes >= trials ? 1 : betaQuantile(0.975, a, b)];
}

/** Returns the number of rows that have a label as label or prediction. */
function rowsOf(counts, label) {
  return counts.predicted[label] + counts.actual[label] - counts.hits[label];
}

/** Returns the share of hits among the rows of each label and the borrowed rows. */
function hitShares(counts) {
  const rows = sumOver(counts.numLabels, (label) => rowsOf(counts, label));
  const overall = (counts.sum((label) => counts.hits[label]) + 0.5) / (rows + 1);
  return Array.from(counts.hits, (hits, label) => (
    (hits + BORROWED_ROWS * overall) / (rowsOf(counts, label) + BORROWED_ROWS)
  ));
}

/** Returns the influence on a metric of a row by what it adds to each count, and of every row. */
function influenceOn(formula, counts) {
  const slope = (change) => {
    change(STEP);
    const above = formula(counts);
    change(-2 * STEP);
    const below = formula(counts);
    change(STEP);
    return (counts.rows * (above - below)) / (2 * STEP);
  };
  const influence = { exact: slope((step) => (counts.exact += step)) };
  let sum = influence.exact * counts.exact;
  for (const field of COUNT_FIELDS) {
    const values = Float64Array.from(counts[field]);
    influence[field] = values.map((value, label) => {
      if (!(counts.predicted[label] + counts.actual[label])) return 0;
      const found = slope((step) => (counts[field][label] += step));
      counts[field][label] = value; // without rounding
      sum += found * value;
      return found;
    });
  }
  return { ...influence, anyRow: -sum / counts.rows };
}

/** Returns the mean influence and the variance of the metric, for [influence, number of rows] of several kinds of rows. */
function moments(kinds, numRows) {
  const mean = kinds.reduce((sum, [influence, size]) => sum + size * influence, 0) / numRows;
  const squares = kinds.reduce((sum, [influence, size]) => sum + size * (influence - mean) ** 2, 0);
  return [mean, squares / numRows ** 2];
}

/** Single-label: the mean influence and the variance, with borrowed rows of each class. */
function spreadOfLabels(influence, cells, counts) {
  const { numLabels, actual, predicted } = counts;
  const of = (label, guess) => influence.actual[label] + influence.predicted[guess] + influence.anyRow
    + (label === guess ? influence.hits[label] + influence.exact : 0);
  const kinds = Array.from(cells.sizes, (size, cell) => {
    const label = cells.labels.labels[cell];
    const own = actual[label] / (actual[label] + BORROWED_ROWS);
    return [of(label, cells.predicted.labels[cell]), own * size];
  });
  const wrong = (counts.rows - counts.exact + 0.5) / (counts.rows + 1);
  for (let label = 0; label < numLabels; label++) {
    if (!actual[label]) continue;
    const borrowed = (actual[label] * BORROWED_ROWS) / (actual[label] + BORROWED_ROWS);
    kinds.push([of(label, label), borrowed * (1 - wrong)]);
    const others = 2 * counts.rows - actual[label] - predicted[label];
    for (let guess = 0; guess < numLabels; guess++) {
      const size = guess === label ? 0 : actual[guess] + predicted[guess];
      if (size) kinds.push([of(label, guess), (borrowed * wrong * size) / others]);
    }
  }
  return moments(kinds, kinds.reduce((sum, [, size]) => sum + size, 0));
}

/** Multi-label: the mean influence and the variance, with borrowed rows of each label. */
function spreadOfSets(influence, cells, counts) {
  const values = Float64Array.from(cells.exact, (exact) => influence.anyRow + (exact ? influence.exact : 0));
  for (const [columns, field] of [[cells.hits, "hits"], [cells.predicted, "predicted"], [cells.labels, "actual"]]) {
    columns.labels.forEach((label, index) => (values[columns.cells[index]] += influence[field][label]));
  }
  let [mean, variance] = moments(Array.from(cells.sizes, (size, cell) => [values[cell], size]), counts.rows);
  let added = 0;
  hitShares(counts).forEach((share, label) => {
    const moreHits = rowsOf(counts, label) * share - counts.hits[label];
    const [missed, wrong] = [influence.actual[label], influence.predicted[label]];
    const hit = influence.hits[label] + missed + wrong;
    mean += (moreHits * (hit - (missed + wrong) / 2)) / counts.rows;
    added += (moreHits * (hit ** 2 - (missed ** 2 + wrong ** 2) / 2)) / counts.rows ** 2;
  });
  return [mean, Math.max(variance / 2, variance + added)];
}

/** Returns how many rows decide the variance of macro F1 (Satterthwaite 1946). */
function rowsBehindVariance(counts) {
  let [sum, squares] = [0, 0];
  hitShares(counts).forEach((share, label) => {
    const rows = rowsOf(counts, label);
    if (!rows) return;
    const variance = (share * (1 - share)) / (1 + share) ** 4 / rows;
    sum += variance;
    squares += variance ** 2 / rows;
  });
  return sum ** 2 / squares;
}

/** Returns why a metric has no interval, or "". */
function metricNote(name, counts, oneLabel) {
  const occurs = (label) => counts.predicted[label] + counts.actual[label] > 0;
  if (name === "matthews_correlation" && Math.max(...counts.actual, ...counts.predicted) === counts.rows) {
    return "all rows have the same label or the same prediction";
  }
  const occurring = counts.sum((label) => Number(occurs(label)));
  if (name.startsWith("f1") && !occurring) return "no row has a label or a prediction";
  const fewRows = (limit) => counts.sum((label) => Number(occurs(label) && counts.actual[label] < limit));
  const words = oneLabel ? ["class", "classes"] : ["label", "labels"];
  const note = (few, limit) => (
    `${few} of ${occurring} ${words[Number(occurring !== 1)]} ${few === 1 ? "has" : "have"} fewer than ${limit} rows`
  );
  if (!["f1_macro", "f1_weighted"].includes(name)) return "";
  const few = fewRows(FEW_CLASS_ROWS);
  if (few > MAX_FEW_CLASSES * occurring) return note(few, FEW_CLASS_ROWS);
  if (name === "f1_weighted" || rowsBehindVariance(counts) >= MIN_CLASS_ROWS) return "";
  return note(fewRows(MIN_CLASS_ROWS), MIN_CLASS_ROWS);
}

/** Returns by how much macro F1 is too low, because each class has few rows. */
function macroBias(counts, numClasses) {
  return hitShares(counts).reduce((sum, share, label) => {
    const rows = rowsOf(counts, label);
    return rows ? sum + (2 * share * (1 - share)) / ((1 + share) ** 3 * rows) : sum;
  }, 0) / numClasses;
}

/**
 * Returns a metric with its interval, or with a note that says why it has none.
 * @param {string} name of the metric
 * @param {function(Counts): number} formula
 */
function metricEstimate(name, formula, cells, counts, oneLabel) {
  const value = formula(counts);
  const none = (note) => ({ value, low: null, high: null, note });
  if (intervalNote(counts.rows)) return none("");
  if (["accuracy", "subset_accuracy"].includes(name) || (name === "f1_micro" && oneLabel)) {
    const [low, high] = shareInterval(counts.exact, counts.rows);
    return { value, low, high, note: "" };
  }
  const note = metricNote(name, counts, oneLabel);
  if (note) return none(`no interval: ${note}`);
  const [mean, variance] = (oneLabel ? spreadOfLabels : spreadOfSets)(influenceOn(formula, counts), cells, counts);
  const occurring = counts.sum((label) => Number(rowsOf(counts, label) > 0));
  const isMacro = name === "f1_macro";
  const [bottom, top] = name === "matthews_correlation" ? [-1, 1]
    : [0, isMacro && !oneLabel ? occurring / counts.numLabels : 1];
  const bias = isMacro ? macroBias(counts, oneLabel ? occurring : counts.numLabels) : 0;
  const width = top - bottom;
  const [share, expected] = [clamp((value + bias - bottom) / width, 0, 1), (value + mean - bottom) / width];
  const trials = variance > 0 ? (expected * (1 - expected) * width ** 2) / variance : NaN;
  if (!(trials > 0)) return none("no interval: all rows have the same influence on it");
  const [low, high] = shareInterval(trials * share, trials);
  return { value, low: bottom + width * low, high: bottom + width * high, note: "" };
}

/** Returns the precision, recall and F1 of a class with their intervals. */
function classEstimates(counts, label) {
  const show = !intervalNote(counts.rows);
  const estimate = (value, rows, change = (share) => share) => {
    if (!show || !rows) return { value, low: null, high: null, note: "" };
    const [low, high] = shareInterval(counts.hits[label], rows).map(change);
    return { value, low, high, note: "" };
  };
  return {
    precision: estimate(counts.precision(label), counts.predicted[label]),
    recall: estimate(counts.recall(label), counts.actual[label]),
    f1: estimate(counts.f1(label), rowsOf(counts, label), (share) => (2 * share) / (1 + share)),
  };
}
