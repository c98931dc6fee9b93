// Metrics of regression with 95 % bootstrap intervals, by the formulas of bootstrap.py.
"use strict";

const MAX_DRAWN_ROWS = 2e6; // of all resamples together, so that the page stays fast
const MAX_SAMPLED_ROWS = 10000; // of more rows, the resamples are drawn from a sample
const SAMPLE_RESAMPLES = 100;

const regressionNames = ["mean_squared_error", "mean_absolute_error", "pearson", "spearman"];

/**
 * Returns the metrics of the rows at some positions.
 *
 * A standard error falls with the square root of the number of rows. That of many rows follows from a sample of them.
 */
function regressionScores(rows, positions) {
  const count = positions.length;
  const once = new Uint32Array(count).fill(1);
  const values = regressionValues(regressionSample(rows, positions), once); // of no rows: undefined
  const generator = new Generator(SEED);
  const isSampled = count > MAX_SAMPLED_ROWS;
  const drawn = isSampled
    ? Uint32Array.from({ length: MAX_SAMPLED_ROWS }, () => positions[Math.floor(generator.uniform() * count)])
    : positions;
  const resamples = isSampled ? SAMPLE_RESAMPLES : numResamples(count, MAX_DRAWN_ROWS / count);
  const resampled = resampledValues(regressionSample(rows, drawn), resamples, generator);
  const estimates = intervalsOf(values, resampled, Math.sqrt(drawn.length / count));
  const metrics = Object.fromEntries(regressionNames.map((name, index) => [name, estimates[index]]));
  const sampled = isSampled ? drawn.length : null;
  return { rows: count, metrics, classes: [], resamples, normal: isNormal(resamples), sampled };
}

/** Returns the metrics of each resample of a sample. */
function resampledValues(sample, resamples, generator) {
  const count = sample.errors.length;
  const times = new Uint32Array(count);
  return Array.from({ length: resamples }, () => {
    times.fill(0);
    for (let draw = 0; draw < count; draw++) times[Math.floor(generator.uniform() * count)]++;
    return regressionValues(sample, times);
  });
}

/** Returns values, centered values (a correlation stays the same), and the rank of each value among distinct ones. */
function regressionSample(rows, positions) {
  const predicted = Float64Array.from(positions, (position) => rows.predictedValue[position]);
  const actual = Float64Array.from(positions, (position) => rows.value[position]);
  const columns = [predicted, actual].map((values) => {
    const mean = values.reduce((total, value) => total + value, 0) / values.length;
    return { centered: values.map((value) => value - mean), ...distinctRanks(values) };
  });
  const errors = predicted.map((value, index) => value - actual[index]);
  return { errors, x: columns[0], y: columns[1] };
}

/** Returns the position of each value among the distinct values, and their number. */
function distinctRanks(values) {
  const distinct = values.slice().sort().filter((value, index, sorted) => index === 0 || value !== sorted[index - 1]);
  return { ranks: Uint32Array.from(values, (value) => lastAtMost(distinct, value)), distinct: distinct.length };
}

/** Returns the metrics of a resample that has each row `times[row]` times. */
function regressionValues({ errors, x, y }, times) {
  let squared = 0;
  let absolute = 0;
  for (let index = 0; index < times.length; index++) {
    squared += times[index] * errors[index] * errors[index];
    absolute += times[index] * Math.abs(errors[index]);
  }
  const ranks = [meanRanks(x, times), meanRanks(y, times)];
  const varies = ranks.every(({ drawn }) => drawn > 1);
  return [
    squared / times.length,
    absolute / times.length,
    varies ? correlation(times, x.centered, y.centered) : NaN,
    varies ? correlation(times, ranks[0].ofRows, ranks[1].ofRows) : NaN,
  ];
}

/** Returns the rank of each row in a resample; equal values have their mean rank. */
function meanRanks({ ranks, distinct }, times) {
  const means = new Float64Array(distinct);
  for (let index = 0; index < times.length; index++) means[ranks[index]] += times[index];
  let below = 0;
  let drawn = 0;
  for (let value = 0; value < distinct; value++) {
    const count = means[value];
    if (count) drawn++;
    means[value] = below + (count - times.length) / 2; // counted from the middle, so that their mean is 0
    below += count;
  }
  const ofRows = new Float64Array(times.length);
  for (let index = 0; index < times.length; index++) ofRows[index] = means[ranks[index]];
  return { ofRows, drawn };
}

/** Returns Pearson's correlation of two columns in which row i occurs `times[i]` times. */
function correlation(times, first, second) {
  const [meanFirst, meanSecond] = [weightedMean(times, first), weightedMean(times, second)];
  let xx = 0;
  let yy = 0;
  let xy = 0;
  for (let index = 0; index < times.length; index++) {
    const x = first[index] - meanFirst;
    const y = second[index] - meanSecond;
    xx += times[index] * x * x;
    yy += times[index] * y * y;
    xy += times[index] * x * y;
  }
  return clamp(xy / Math.sqrt(xx * yy), -1, 1);
}

function weightedMean(times, values) {
  let sum = 0;
  for (let index = 0; index < times.length; index++) sum += times[index] * values[index];
  return sum / times.length;
}
