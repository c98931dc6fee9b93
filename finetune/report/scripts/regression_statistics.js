// Metrics of regression with 95 % intervals, by the formulas of evaluation/regression_intervals.py.
"use strict";

/** Returns the metrics of the rows at some positions. */
function regressionScores(rows, positions) {
  const predicted = Float64Array.from(positions, (position) => rows.predictedValue[position]);
  const actual = Float64Array.from(positions, (position) => rows.value[position]);
  const errors = predicted.map((value, index) => value - actual[index]);
  const metrics = {
    mean_squared_error: meanEstimate(errors.map((error) => error * error)),
    mean_absolute_error: meanEstimate(errors.map(Math.abs)),
    pearson: correlationEstimate(predicted, actual, pearsonInfluence, 1 / Math.sqrt(positions.length - 3)),
    spearman: correlationEstimate(predicted, actual, spearmanInfluence, 0),
  };
  return { rows: positions.length, metrics, classes: [] };
}

/** Returns the mean of values. */
function meanOf(values) {
  return sumOver(values.length, (index) => values[index]) / values.length;
}

/** Returns the mean of values that are not negative, with its interval (Hall 1992). */
function meanEstimate(values) {
  const count = values.length;
  if (!count) return noEstimate;
  const mean = meanOf(values);
  const none = (note) => ({ value: mean, low: null, high: null, note });
  if (intervalNote(count)) return none("");
  const [squares, cubes] = [2, 3].map((power) => sumOver(count, (index) => (values[index] - mean) ** power));
  const error = Math.sqrt(squares / (count - 1) / count);
  if (error <= 1e-12 * Math.abs(mean)) return none("no interval: all rows have the same error");
  const sampleSkewness = cubes / count / (squares / count) ** 1.5;
  const skewness = (sampleSkewness * Math.sqrt(count * (count - 1))) / (count - 2) / Math.sqrt(count);
  const quantile = tQuantile(count - 1);
  const [low, high] = [quantile, -quantile].map((score) => (
    mean - error * (Math.abs(skewness) > 1e-6 ? ((Math.cbrt(1 + skewness * (score - skewness / 6)) - 1) * 3) / skewness : score)
  ));
  return { value: mean, low: Math.max(0, low), high, note: "" };
}

/**
 * Returns a correlation with its interval.
 * @param {number} least the least width on Fisher's scale, in standard deviations of a normal distribution
 */
function correlationEstimate(x, y, influenceOf, least) {
  const count = x.length;
  const isConstant = (values) => values.every((value) => value === values[0]);
  if (count < 2 || isConstant(x) || isConstant(y)) return noEstimate;
  const { value, influence } = influenceOf(x, y);
  const none = (note) => ({ value, low: null, high: null, note });
  if (intervalNote(count)) return none("");
  if (1 - Math.abs(value) < 1e-12) return none("no interval: the correlation is perfect");
  const squares = sumOver(count, (index) => influence[index] ** 2);
  const error = Math.sqrt(squares / count / (count - 3)) / (1 - value ** 2);
  const width = Math.max(tQuantile(count - 2) * error, DEVIATIONS * least);
  return { value, low: Math.tanh(Math.atanh(value) - width), high: Math.tanh(Math.atanh(value) + width), note: "" };
}

/** Returns values with a mean of 0 and a variance of 1, and their standard deviation. */
function standardized(values) {
  const mean = meanOf(values);
  const deviation = Math.sqrt(meanOf(values.map((value) => (value - mean) ** 2)));
  return { values: values.map((value) => (value - mean) / deviation), deviation };
}

/** Returns Pearson's correlation, and the influence of each row on it. */
function pearsonInfluence(x, y) {
  const [first, second] = [x, y].map((values) => standardized(values).values);
  const value = clamp(meanOf(first.map((term, index) => term * second[index])), -1, 1);
  const influence = first.map((term, index) => {
    const other = second[index];
    return term * other - (value * (term * term + other * other)) / 2;
  });
  return { value, influence };
}

/** Returns Spearman's correlation, and the influence of each row on it: also by the ranks of the other rows. */
function spearmanInfluence(x, y) {
  const orders = [x, y].map(groupsOf);
  const [first, second] = orders.map(({ ranks }) => standardized(ranks));
  const { value, influence } = pearsonInfluence(first.values, second.values);
  const sides = [[orders[0], first, second.values], [orders[1], second, first.values]];
  for (const [order, { values, deviation }, others] of sides) {
    const slopes = others.map((other, index) => other - value * values[index]);
    const effect = effectOnRanks(order, slopes);
    effect.forEach((change, index) => (influence[index] += (change * x.length) / deviation));
  }
  return { value, influence };
}

/** Returns the positions of the rows in groups of equal values, smallest first, and the mean rank of each row. */
function groupsOf(values) {
  const order = Uint32Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
  const ranks = new Float64Array(values.length);
  const groups = [];
  for (let start = 0, end = 0; start < order.length; start = end) {
    while (end < order.length && values[order[end]] === values[order[start]]) end++;
    const group = order.subarray(start, end);
    for (const row of group) ranks[row] = (start + 1 + end) / 2;
    groups.push(group);
  }
  return { groups, ranks };
}

/** Returns what each row adds, by its effect on the ranks of the other rows, to the mean of rank times slope. */
function effectOnRanks({ groups }, slopes) {
  const effect = new Float64Array(slopes.length);
  let below = 0;
  for (const group of groups) {
    const own = group.reduce((sum, row) => sum + slopes[row], 0);
    for (const row of group) effect[row] = -(2 * below + own) / 2 / slopes.length;
    below += own;
  }
  const mean = meanOf(effect);
  return effect.map((change) => change - mean);
}
