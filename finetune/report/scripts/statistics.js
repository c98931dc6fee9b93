// Metrics of the rows of a slice with 95 % intervals, by the formulas of metric_formulas.py and bootstrap.py.
//
// Rows with the same labels and the same predictions are of one cell. A bootstrap resample is the number of rows of
// each cell (CellSampler), so its cost does not grow with the number of rows.
"use strict";

const MIN_ROWS = 10; // fewer rows have too few different resamples
const SEED = 1;
const MAX_WORK = 6e6; // resampled cells and labels, so that the page stays fast
const MIN_PERCENTILE_RESAMPLES = 200; // fewer give no stable percentiles, but a standard error
const DEVIATIONS = 1.959963984540054; // standard deviations on each side of the middle 95 % of a normal distribution

/**
 * @typedef {{value: number | null, low: number | null, high: number | null}} Estimate null: undefined, no interval
 * @typedef {{label: string, rows: number, predicted: number, precision: Estimate, recall: Estimate, f1: Estimate}} ClassRow
 * @typedef {{rows: number, metrics: Object<string, Estimate>, classes: ClassRow[], resamples: number,
 *   normal: boolean, sampled: number | null}} Scores `normal`: the intervals are 1.96 standard errors wide on each side;
 *   `sampled`: the resamples are drawn from so many of the rows
 */

/** Returns the ratio, 0 where the denominator is 0. */
function ratio(numerator, denominator) {
  return denominator === 0 ? 0 : numerator / denominator;
}

/** Returns the sum over all labels. */
function sumOver(numLabels, term) {
  let sum = 0;
  for (let label = 0; label < numLabels; label++) sum += term(label);
  return sum;
}

/** The number of rows from which classification metrics are computed: per label, and in total. */
class Counts {
  constructor(numLabels) {
    this.numLabels = numLabels;
    [this.hits, this.predicted, this.actual] = [0, 1, 2].map(() => new Float64Array(numLabels));
    [this.exact, this.rows] = [0, 0];
  }

  /** Counts the cells, cell k as drawn[k] rows. */
  set(cells, drawn) {
    for (const counts of [this.hits, this.predicted, this.actual]) counts.fill(0);
    cells.hits.count(drawn, this.hits);
    cells.predicted.count(drawn, this.predicted);
    cells.labels.count(drawn, this.actual);
    this.exact = 0;
    this.rows = 0;
    for (let cell = 0; cell < drawn.length; cell++) {
      this.rows += drawn[cell];
      if (cells.exact[cell]) this.exact += drawn[cell];
    }
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

  /** Adds drawn[k] to the count of every label of cell k. */
  count(drawn, counts) {
    const { labels, cells } = this;
    for (let index = 0; index < labels.length; index++) counts[labels[index]] += drawn[cells[index]];
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
 * Returns the cells of rows, largest first: number of rows, labels, predicted labels, labels in both, whether equal.
 * @param {Rows} rows
 * @param {Uint32Array} positions
 */
function cellsOf(rows, positions) {
  const kinds = rows.label ? pairsOf(rows, positions) : patternsOf(rows, positions);
  const order = [...kinds.sizes.keys()].filter((kind) => kinds.sizes[kind]);
  if (!drawsRows(positions.length, order.length)) order.sort((a, b) => kinds.sizes[b] - kinds.sizes[a]);
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
  const formulas = metricFormulas[rows.problemType];
  const valuesOf = (counts) => valuesOfCounts(counts, Object.values(formulas));
  const counts = new Counts(rows.labels.length).set(cells, cells.sizes);
  const work = 3 * cells.sizes.length + cells.labels.labels.length + cells.predicted.labels.length;
  const resamples = numResamples(positions.length, MAX_WORK / work);
  const estimates = intervalsOf(valuesOf(counts), bootstrap(cells, resamples, rows.labels.length, valuesOf));
  const byName = Object.keys(formulas).map((name, index) => [name, positions.length ? estimates[index] : noEstimate]);
  const perClass = estimates.slice(byName.length);
  const classes = rows.labels.map((label, index) => ({
    label,
    rows: counts.actual[index],
    predicted: counts.predicted[index],
    precision: perClass[3 * index],
    recall: perClass[3 * index + 1],
    f1: perClass[3 * index + 2],
  }));
  const metrics = Object.fromEntries(byName);
  return { rows: positions.length, metrics, classes, resamples, normal: isNormal(resamples), sampled: null };
}

const noEstimate = { value: null, low: null, high: null };

/** Returns the value limited to a range. */
function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

/** Returns the metrics, then precision, recall and F1 of each class. */
function valuesOfCounts(counts, formulas) {
  const values = formulas.map((formula) => formula(counts));
  for (let label = 0; label < counts.numLabels; label++) {
    values.push(counts.precision(label), counts.recall(label), counts.f1(label));
  }
  return values;
}

/** Returns the values of each resample. */
function bootstrap(cells, resamples, numLabels, valuesOf) {
  const sampler = new CellSampler(cells.sizes, new Generator(SEED));
  const [drawn, counts] = [new Uint32Array(cells.sizes.length), new Counts(numLabels)];
  return Array.from({ length: resamples }, () => {
    sampler.draw(drawn);
    return valuesOf(counts.set(cells, drawn));
  });
}

/** Returns how many resamples to draw: at most as many as `affordable`. */
function numResamples(numRows, affordable) {
  return numRows < MIN_ROWS ? 0 : Math.round(clamp(affordable, 40, 1000));
}

/** Returns whether intervals of so many resamples are 1.96 standard errors wide on each side. */
function isNormal(resamples) {
  return resamples > 0 && resamples < MIN_PERCENTILE_RESAMPLES;
}

/**
 * Returns the values with their intervals; resampled values that are undefined do not count.
 * @param {number} [scale] of the standard errors, if the resamples have fewer rows than the values
 */
function intervalsOf(values, resampled, scale = 1) {
  return values.map((given, index) => {
    const value = Number.isFinite(given) ? given : null;
    const column = Float64Array.from(resampled, (resample) => resample[index]).filter(Number.isFinite).sort();
    const [low, high] = isNormal(resampled.length) ? normalBounds(given, column, scale) : percentileBounds(column);
    return low < high ? { value, low, high } : { value, low: null, high: null };
  });
}

/** Returns the 2.5th and 97.5th percentiles of sorted values. */
function percentileBounds(column) {
  return [percentile(column, 0.025), percentile(column, 0.975)];
}

/** Returns the value minus and plus 1.96 standard deviations of its resamples, but not beyond 0 and 1 if they are not. */
function normalBounds(value, column, scale) {
  const half = DEVIATIONS * scale * standardDeviation(column);
  const [least, most] = [column[0] < 0 ? -1 : 0, column.at(-1) > 1 ? Infinity : 1];
  return [clamp(value - half, least, Infinity), clamp(value + half, -Infinity, most)];
}

/** Returns the standard deviation of a sample. */
function standardDeviation(values) {
  const mean = values.reduce((total, value) => total + value, 0) / values.length;
  return Math.sqrt(values.reduce((total, value) => total + (value - mean) ** 2, 0) / (values.length - 1));
}

/** Returns a percentile of sorted values, linearly interpolated; NaN if there are none. */
function percentile(sorted, share) {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted.length ? sorted[below] + (place - below) * (sorted[above] - sorted[below]) : NaN;
}

/** Returns the Wilson interval of a share, [low, high]. */
function wilsonInterval(successes, trials) {
  const square = DEVIATIONS ** 2;
  const middle = (successes + square / 2) / (trials + square);
  const variance = (successes * (trials - successes)) / trials + square / 4;
  const half = (DEVIATIONS / (trials + square)) * Math.sqrt(variance);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

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
