// Quantiles of the beta distribution and of Student's t, the standard deviation, and the interval of Wilson.
"use strict";

const DEVIATIONS = 1.959963984540054; // standard deviations on each side of the middle 95 % of a normal distribution

const lanczos = [
  0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
  12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
];

/** Returns the logarithm of the gamma function of a number of at least 0.5 (Lanczos 1964). */
function logGamma(value) {
  const x = value - 1;
  const sum = lanczos.reduce((total, factor, index) => total + (index ? factor / (x + index) : factor), 0);
  const t = x + 7.5;
  return Math.log(2 * Math.PI) / 2 + (x + 0.5) * Math.log(t) - t + Math.log(sum);
}

/** Returns the continued fraction of the incomplete beta function, by Lentz's method (Press et al. 2007, 6.4). */
function betaFraction(x, a, b) {
  const tiny = 1e-300;
  const bounded = (value) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / bounded(1 - ((a + b) * x) / (a + 1));
  let result = d;
  for (let step = 1; step <= 10000; step++) {
    const even = (step * (b - step) * x) / ((a + 2 * step - 1) * (a + 2 * step));
    d = 1 / bounded(1 + even * d);
    c = bounded(1 + even / c);
    result *= d * c;
    const odd = (-(a + step) * (a + b + step) * x) / ((a + 2 * step) * (a + 2 * step + 1));
    d = 1 / bounded(1 + odd * d);
    c = bounded(1 + odd / c);
    result *= d * c;
    if (Math.abs(d * c - 1) < 1e-14) break;
  }
  return result;
}

/** Returns the quantile of a beta distribution, by Newton's method within bounds. */
function betaQuantile(level, a, b) {
  const scale = logGamma(a + b) - logGamma(a) - logGamma(b);
  let [low, high] = [0, 1];
  let x = a / (a + b);
  for (let round = 0; round < 200; round++) {
    const [logX, logRest] = [Math.log(x), Math.log1p(-x)];
    const front = Math.exp(scale + a * logX + b * logRest);
    const below = x < (a + 1) / (a + b + 2)
      ? (front * betaFraction(x, a, b)) / a
      : 1 - (front * betaFraction(1 - x, b, a)) / b;
    if (below > level) high = x;
    else low = x;
    const density = Math.exp(scale + (a - 1) * logX + (b - 1) * logRest);
    let next = x - (below - level) / density;
    if (!(next > low && next < high)) next = (low + high) / 2;
    if (Math.abs(next - x) <= 1e-13 * x || high - low < 1e-15) return next;
    x = next;
  }
  return x;
}

/** Returns the 97.5th percentile of Student's t. */
function tQuantile(degrees) {
  const x = betaQuantile(0.05, degrees / 2, 0.5);
  return Math.sqrt(degrees * (1 / x - 1));
}

/** Returns the standard deviation of a sample. */
function standardDeviation(values) {
  const mean = values.reduce((total, value) => total + value, 0) / values.length;
  return Math.sqrt(values.reduce((total, value) => total + (value - mean) ** 2, 0) / (values.length - 1));
}

/** Returns the Wilson interval of a share, [low, high]. */
function wilsonInterval(successes, trials) {
  const square = DEVIATIONS ** 2;
  const middle = (successes + square / 2) / (trials + square);
  const variance = (successes * (trials - successes)) / trials + square / 4;
  const half = (DEVIATIONS / (trials + square)) * Math.sqrt(variance);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}
