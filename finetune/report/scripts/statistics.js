// Metrics of the rows of a slice with 95 % intervals, by the formulas of evaluation/metric_formulas.py.
//
// Rows with the same labels and the same predictions are of one cell.
"use strict";

/**
 * @typedef {{value: number | null, low: number | null, high: number | null, note: string}} Estimate
 *   null: undefined, no interval; `note`: why there is no interval
 * @typedef {{label: string, rows: number, predicted: number, precision: Estimate, recall: Estimate, f1: Estimate}} ClassRow
 * @typedef {{rows: number, metrics: Object<string, Estimate>, classes: ClassRow[]}} Scores
 */

/** Returns the ratio, 0 where the denominator is 0. */
function ratio(numerator, denominator) {
  return denominator === 0 ? 0 : numerator / denominator;
}

/** The number of rows from which classification metrics are computed: per label, and in total. */
class Counts {
  constructor(numLabels) {
    this.numLabels = numLabels;
    [this.hits, this.predicted, this.actual] = [0, 1, 2].map(() => new Float64Array(numLabels));
    [this.exact, this.rows] = [0, 0];
  }

  /** Counts the rows of all cells. */
  set(cells) {
    cells.hits.count(cells.sizes, this.hits);
    cells.predicted.count(cells.sizes, this.predicted);
    cells.labels.count(cells.sizes, this.actual);
    cells.sizes.forEach((size, cell) => {
      this.rows += size;
      if (cells.exact[cell]) this.exact += size;
    });
    return this;
  }

  precision(label) {
    return ratio(this.hits[label], this.predicted[label]);
  }

  recall(label) {
    return ratio(this.hits[label], this.actual[label]);
  }

  f1(label) {
    return ratio(2 * this.hits[label], this.predicted[label] + this.actual[label]);
  }

  sum(term) {
    return sumOver(this.numLabels, term);
  }
}

/** The labels of cells: label `labels[i]` belongs to cell `cells[i]`. */
class LabelColumns {
  constructor() {
    [this.labels, this.cells] = [[], []];
  }

  add(cell, labels) {
    for (const label of labels) {
      this.labels.push(label);
      this.cells.push(cell);
    }
  }

  /** Adds sizes[k] to the count of every label of cell k. */
  count(sizes, counts) {
    const { labels, cells } = this;
    for (let index = 0; index < labels.length; index++) counts[labels[index]] += sizes[cells[index]];
  }
}

/** @param {Counts} counts */
function accuracy(counts) {
  return ratio(counts.exact, counts.rows);
}

function f1MacroOfOccurring(counts) {
  const occurring = counts.sum((label) => Number(counts.predicted[label] + counts.actual[label] > 0));
  return ratio(counts.sum((label) => counts.f1(label)), occurring);
}

function f1MacroOfAll(counts) {
  return counts.sum((label) => counts.f1(label)) / counts.numLabels;
}

function f1Micro(counts) {
  const total = counts.sum((label) => counts.predicted[label] + counts.actual[label]);
  return ratio(2 * counts.sum((label) => counts.hits[label]), total);
}

function f1Weighted(counts) {
  return ratio(counts.sum((label) => counts.f1(label) * counts.actual[label]), counts.sum((label) => counts.actual[label]));
}

function matthewsCorrelation(counts) {
  const square = counts.rows ** 2;
  const covariance = counts.exact * counts.rows - counts.sum((label) => counts.predicted[label] * counts.actual[label]);
  const spread = (square - counts.sum((label) => counts.predicted[label] ** 2))
    * (square - counts.sum((label) => counts.actual[label] ** 2));
  return ratio(covariance, Math.sqrt(spread));
}

const metricFormulas = {
  single_label_classification: {
    accuracy,
    f1_macro: f1MacroOfOccurring,
    f1_micro: f1Micro,
    f1_weighted: f1Weighted,
    matthews_correlation: matthewsCorrelation,
  },
  multi_label_classification: {
    f1_micro: f1Micro,
    f1_macro: f1MacroOfAll,
    f1_weighted: f1Weighted,
    subset_accuracy: accuracy,
  },
};

/**
 * Returns the cells of rows: number of rows, labels, predicted labels, labels in both, whether equal.
 * @param {Rows} rows
 * @param {Uint32Array} positions
 */
function cellsOf(rows, positions) {
  const kinds = rows.label ? pairsOf(rows, positions) : patternsOf(rows, positions);
  const order = [...kinds.sizes.keys()].filter((kind) => kinds.sizes[kind]);
  const [labels, predicted, hits] = [0, 1, 2].map(() => new LabelColumns());
  const exact = order.map((kind, cell) => {
    const [actual, guessed] = [kinds.labels(kind), kinds.predicted(kind)];
    const shared = actual.filter((label) => guessed.includes(label));
    labels.add(cell, actual);
    predicted.add(cell, guessed);
    hits.add(cell, shared);
    return shared.length === actual.length && shared.length === guessed.length;
  });
  return { sizes: Uint32Array.from(order, (kind) => kinds.sizes[kind]), exact, labels, predicted, hits };
}

/** Single-label: the number of rows of each pair of a label and a predicted label. */
function pairsOf(rows, positions) {
  const numLabels = rows.labels.length;
  const sizes = new Uint32Array(numLabels ** 2);
  for (const position of positions) sizes[rows.label[position] * numLabels + rows.predicted[position]]++;
  return { sizes, labels: (kind) => [Math.floor(kind / numLabels)], predicted: (kind) => [kind % numLabels] };
}

const patternsOfRows = new WeakMap();

/** Multi-label: the number of rows of each pair of a label set and a predicted set. */
function patternsOf(rows, positions) {
  if (!patternsOfRows.has(rows)) patternsOfRows.set(rows, allPatterns(rows));
  const { patternOf, examples } = patternsOfRows.get(rows);
  const sizes = new Uint32Array(examples.length);
  for (const position of positions) sizes[patternOf[position]]++;
  return {
    sizes,
    labels: (kind) => rows.labelSets(examples[kind]),
    predicted: (kind) => rows.predictedSets(examples[kind]),
  };
}

/** Returns the pattern of every row, and the first row of every pattern. */
function allPatterns(rows) {
  const known = new Map();
  const examples = [];
  const patternOf = new Uint32Array(rows.count);
  for (let position = 0; position < rows.count; position++) {
    const key = `${rows.labelSets(position).join()}|${rows.predictedSets(position).join()}`;
    if (!known.has(key)) {
      known.set(key, examples.length);
      examples.push(position);
    }
    patternOf[position] = known.get(key);
  }
  return { patternOf, examples };
}

/**
 * Returns all metrics of the rows at some positions, and the scores per class.
 * @param {Rows} rows
 * @param {Uint32Array} positions
 * @returns {Scores}
 */
function scoresOf(rows, positions) {
  if (rows.problemType === "regression") return regressionScores(rows, positions);
  const cells = cellsOf(rows, positions);
  const counts = new Counts(rows.labels.length).set(cells);
  const oneLabel = rows.problemType === "single_label_classification";
  const formulas = Object.entries(metricFormulas[rows.problemType]);
  const metrics = Object.fromEntries(formulas.map(([name, formula]) => [
    name, positions.length ? metricEstimate(name, formula, cells, counts, oneLabel) : noEstimate,
  ]));
  const classes = rows.labels.map((label, index) => ({
    label, rows: counts.actual[index], predicted: counts.predicted[index], ...classEstimates(counts, index),
  }));
  return { rows: positions.length, metrics, classes };
}

const noEstimate = { value: null, low: null, high: null, note: "" };

/**
 * Returns the average precision of a label's probabilities in rows, as scikit-learn defines it; null if no row has the
 * label, or the page does not contain all probabilities.
 */
function averagePrecision(positions, label) {
  if (!rows.hasAllProbabilities) return null;
  const hasLabel = (position) => (rows.label ? rows.label[position] === label : rows.labelSets(position).includes(label));
  const order = Array.from(positions, (position) => [rows.probability(position, label), hasLabel(position)])
    .sort((a, b) => b[0] - a[0]);
  let [hits, counted, sum] = [0, 0, 0];
  for (let start = 0, end = 0; start < order.length; start = end) {
    while (end < order.length && order[end][0] === order[start][0]) hits += Number(order[end++][1]);
    sum += (hits - counted) * (hits / end);
    counted = hits;
  }
  return hits ? sum / hits : null;
}
