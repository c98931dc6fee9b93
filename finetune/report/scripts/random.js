// Random numbers from a seed, so that the page shows the same intervals each time.
"use strict";

/** Random numbers: sfc32 of PractRand, seeded. */
class Generator {
  /** @param {number} seed an integer */
  constructor(seed) {
    this.state = Int32Array.of(0, seed, seed >>> 16, 1);
    for (let round = 0; round < 15; round++) this.uniform();
  }

  /** Returns a number from 0 to below 1. */
  uniform() {
    const state = this.state;
    const a = state[0];
    const b = state[1];
    const c = state[2];
    const sum = (a + b + state[3]) | 0;
    state[0] = b ^ (b >>> 9);
    state[1] = c + (c << 3);
    state[2] = ((c << 21) | (c >>> 11)) + sum;
    state[3]++;
    return (sum >>> 0) / 4294967296;
  }

  /** Returns how many of `trials` succeed, each with a probability. */
  binomial(trials, probability) {
    if (trials === 0 || probability <= 0) return 0;
    if (probability >= 1) return trials;
    if (probability > 0.5) return trials - this.binomial(trials, 1 - probability);
    if (trials * probability < 10) return this.#binomialByInversion(trials, probability);
    return this.#binomialByRejection(trials, probability);
  }

  /** Inversion by sequential search (Kachitvichyanukul and Schmeiser 1988, BINV), for a small mean. */
  #binomialByInversion(trials, probability) {
    const odds = probability / (1 - probability);
    let mass = Math.exp(trials * Math.log1p(-probability));
    let remaining = this.uniform();
    let successes = 0;
    while (remaining > mass && successes < trials) {
      remaining -= mass;
      successes++;
      mass *= (odds * (trials - successes + 1)) / successes;
    }
    return successes;
  }

  /** Transformed rejection (Hörmann 1993, BTRS), for a mean of at least 10. */
  #binomialByRejection(trials, probability) {
    const spread = Math.sqrt(trials * probability * (1 - probability));
    const odds = probability / (1 - probability);
    const b = 1.15 + 2.53 * spread;
    const a = -0.0873 + 0.0248 * b + 0.01 * probability;
    const alpha = (2.83 + 5.1 / b) * spread;
    const mode = Math.floor((trials + 1) * probability);
    for (;;) {
      const u = this.uniform() - 0.5;
      const v = this.uniform();
      const distance = 0.5 - Math.abs(u);
      const k = Math.floor(((2 * a) / distance + b) * u + trials * probability + 0.5);
      if (distance >= 0.07 && v <= 0.92 - 4.2 / b) return k;
      if (k < 0 || k > trials) continue;
      const bound = (mode + 0.5) * Math.log((mode + 1) / (odds * (trials - mode + 1)))
        + (trials + 1) * Math.log((trials - mode + 1) / (trials - k + 1))
        + (k + 0.5) * Math.log((odds * (trials - k + 1)) / (k + 1))
        + stirlingTail(mode) + stirlingTail(trials - mode) - stirlingTail(k) - stirlingTail(trials - k);
      if (Math.log((v * alpha) / (a / (distance * distance) + b)) <= bound) return k;
    }
  }
}

const stirlingTails = [
  0.0810614667953272, 0.0413406959554092, 0.0276779256849983, 0.0207906721037651, 0.0166446911898211,
  0.0138761288230707, 0.0118967099458917, 0.0104112652619720, 0.00925546218271273, 0.00833056343336287,
];

/** Returns log(k!) minus Stirling's approximation of it. */
function stirlingTail(k) {
  if (k < stirlingTails.length) return stirlingTails[k];
  const square = (k + 1) ** 2;
  return (1 / 12 - (1 / 360 - 1 / 1260 / square) / square) / (k + 1);
}

/** Returns whether cells have so few rows that drawing single rows is cheaper than drawing numbers per cell. */
function drawsRows(numRows, numCells) {
  return numRows < 4 * numCells;
}

/**
 * Draws as many rows with replacement as there are and counts them per cell: a multinomial distribution.
 *
 * The cost depends on the number of cells and not on the number of rows, unless drawing single rows is cheaper.
 */
class CellSampler {
  /** @param {Uint32Array} sizes number of rows of each cell, at least 1; drawing is fastest with the largest first */
  constructor(sizes, generator) {
    [this.sizes, this.generator] = [sizes, generator];
    this.rows = sizes.reduce((total, size) => total + size, 0);
    this.cellOfRow = drawsRows(this.rows, sizes.length) ? this.#cellOfEachRow() : null;
  }

  /** Fills `drawn` with the number of drawn rows of each cell. */
  draw(drawn) {
    if (this.cellOfRow) this.#drawRows(drawn);
    else this.#drawCells(drawn);
  }

  #drawRows(drawn) {
    drawn.fill(0);
    for (let count = 0; count < this.rows; count++) {
      drawn[this.cellOfRow[Math.floor(this.generator.uniform() * this.rows)]]++;
    }
  }

  #drawCells(drawn) {
    let [left, leftSize] = [this.rows, this.rows];
    for (let cell = 0; cell < drawn.length; cell++) {
      drawn[cell] = left && this.generator.binomial(left, this.sizes[cell] / leftSize);
      left -= drawn[cell];
      leftSize -= this.sizes[cell];
    }
  }

  #cellOfEachRow() {
    const cells = new Uint32Array(this.rows);
    let start = 0;
    this.sizes.forEach((size, cell) => cells.fill(cell, start, (start += size)));
    return cells;
  }
}
