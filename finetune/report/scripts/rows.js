// The predicted rows of the run as typed arrays (see row_columns.py), and the slice of them that the page shows.
"use strict";

/** @type {Rows | null} the rows of the page after its start; null if it has none */
let rows = null;

/** The predicted rows. A row is named by its position in predictions.parquet, counted from 0. */
class Rows {
  /** Returns the rows that are embedded in the page, or null if there are none. */
  static async load() {
    if (!document.getElementById("rows-manifest")) return null;
    const manifest = await unpackJson("rows-manifest");
    const names = Object.keys(manifest.columns);
    const arrays = await Promise.all(names.map(async (name) => (
      typedArray(await unpack(`rows-${name}`), manifest.columns[name])
    )));
    return new Rows(manifest, Object.fromEntries(names.map((name, index) => [name, arrays[index]])));
  }

  constructor(manifest, columns) {
    this.count = manifest.count;
    this.splits = manifest.splits;
    this.shownSplit = manifest.shownSplit;
    this.labels = manifest.labels;
    this.thresholds = manifest.thresholds ?? {}; // of the model, by label name
    this.problemType = manifest.problemType;
    this.split = columns.split;
    this.row = cumulativeSum(columns.row);
    this.length = columns.length;
    this.labelErrors = columns["label-errors"] ?? null; // positions of likely label errors, likeliest first; null: not checked
    this.texts = manifest.texts;
    this.chunks = new Map();
    this.textIndex = columns["has-text"] ? positionsAmong(columns["has-text"]) : null;
    if (this.problemType === "regression") {
      this.value = columns.value;
      this.predictedValue = columns["predicted-value"];
      this.confidence = null;
      this.loss = columns.loss;
    } else {
      this.#readProbabilities(manifest, columns);
      this.#readLabels(columns);
    }
  }

  /** Whether probability() knows every label of every row. */
  get hasAllProbabilities() {
    return this.problemType !== "regression" && !this.probabilityLabels;
  }

  /** Returns the probability of a label in a row; null if only the highest are embedded and it is not one of them. */
  probability(position, label) {
    const code = this.#code(position, label);
    return code === null ? null : this.probabilityOfCode[code];
  }

  /** Returns the labels of a row as positions in `labels` (multi-label). */
  labelSets(position) {
    return this.labelValues.subarray(this.labelOffsets[position], this.labelOffsets[position + 1]);
  }

  /** Returns the predicted labels of a row as positions in `labels` (multi-label). */
  predictedSets(position) {
    return this.predictedValues.subarray(this.predictedOffsets[position], this.predictedOffsets[position + 1]);
  }

  /** Returns whether a row was predicted correctly: every label of a multi-label row; null in regression. */
  correct(position) {
    if (this.problemType === "regression") return null;
    if (this.label) return this.label[position] === this.predicted[position];
    const [label, predicted] = [this.labelSets(position), this.predictedSets(position)];
    return label.length === predicted.length && label.every((value) => predicted.includes(value));
  }

  /** Returns the text of a row, both texts of a pair with a bar between them, or null where it is not embedded. */
  async text(position) {
    return (await this.textFields(position))?.join(" ⏐ ") ?? null;
  }

  /** Returns the texts of a row, [text] or [text, text_1], or null where they are not embedded. */
  async textFields(position) {
    const index = this.textIndex ? this.textIndex[position] : position;
    if (!this.texts.fields || index < 0) return null;
    const chunk = lastAtMost(this.texts.starts, index);
    const start = (index - this.texts.starts[chunk]) * this.texts.fields;
    return (await this.textChunk(chunk)).slice(start, start + this.texts.fields);
  }

  /** Returns the texts of a chunk as a promise of a list; it is decoded once. */
  textChunk(chunk) {
    if (!this.chunks.has(chunk)) this.chunks.set(chunk, unpackJson(`rows-text-${chunk}`));
    return this.chunks.get(chunk);
  }

  #code(position, label) {
    if (label >= this.numProbabilities) return null;
    if (!this.probabilityLabels) {
      if (!this.isComplement) return this.codes[label * this.count + position];
      return label === 1 ? this.codes[position] : 2 * this.zero - this.codes[position];
    }
    for (let index = position; index < this.codes.length; index += this.count) {
      if (this.probabilityLabels[index] === label) return this.codes[index];
    }
    return null;
  }

  #readProbabilities(manifest, columns) {
    this.codes = columns.probability; // log-odds as integers, N per label or per rank
    this.probabilityLabels = columns["probability-labels"] ?? null; // label of each, if only the highest are embedded
    this.numProbabilities = manifest.probabilityLabels;
    this.zero = manifest.logOddsZero;
    this.isComplement = manifest.problemType === "single_label_classification" && this.numProbabilities === 2
      && !this.probabilityLabels;
    const logOdds = (code) => (code - this.zero) / manifest.logOddsSteps;
    this.probabilityOfCode = Float64Array.from({ length: 2 * this.zero }, (_, code) => 1 / (1 + Math.exp(-logOdds(code))));
    this.lossOfCode = Float32Array.from({ length: 2 * this.zero }, (_, code) => Math.log1p(Math.exp(-logOdds(code))));
  }

  #readLabels(columns) {
    this.confidence = new Float32Array(this.count);
    if (!columns.label) {
      [this.labelOffsets, this.labelValues] = [offsets(columns["label-sizes"]), columns["label-values"]];
      [this.predictedOffsets, this.predictedValues] = [offsets(columns["predicted-sizes"]), columns["predicted-values"]];
      this.loss = columns.loss;
      this.#setLeastConfidence();
      return;
    }
    [this.label, this.predicted] = [columns.label, columns.predicted];
    this.loss = columns.loss ?? new Float32Array(this.count);
    for (let position = 0; position < this.count; position++) {
      this.confidence[position] = this.probability(position, this.predicted[position]) ?? NaN;
      if (!columns.loss) this.loss[position] = this.lossOfCode[this.#code(position, this.label[position])];
    }
  }

  /** Multi-label: the confidence of a row is that of its least certain label, where it is p if the label is predicted. */
  #setLeastConfidence() {
    this.confidence.fill(1);
    for (let index = 0; index < this.codes.length; index++) {
      const probability = this.probabilityOfCode[this.codes[index]];
      const position = index % this.count;
      const label = this.probabilityLabels ? this.probabilityLabels[index] : Math.floor(index / this.count);
      const isPredicted = probability > (this.thresholds[this.labels[label]] ?? 0.5);
      this.confidence[position] = Math.min(this.confidence[position], isPredicted ? probability : 1 - probability);
    }
  }
}

// ---- The slice: the rows that the page shows and computes everything from.

const sliceListeners = [];
let currentSlice = null;

/**
 * Calls `listener` with the positions of the rows in the slice, at the start of the page and after each change.
 * @param {(positions: Uint32Array) => void} listener
 */
function onSlice(listener) {
  sliceListeners.push(listener);
  if (currentSlice) listener(currentSlice);
}

/** Makes these rows the slice. */
function setSlice(positions) {
  currentSlice = positions;
  for (const listener of sliceListeners) listener(positions);
}

// ---- Typed arrays

const arrayTypes = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/** Returns the typed array of bytes in which all first bytes come before all second bytes. */
function typedArray(buffer, kind) {
  const size = arrayTypes[kind].BYTES_PER_ELEMENT;
  if (size === 1) return new Uint8Array(buffer);
  const planes = new Uint8Array(buffer);
  const bytes = new Uint8Array(planes.length);
  const count = planes.length / size;
  for (let byte = 0; byte < size; byte++) {
    for (let index = 0; index < count; index++) bytes[index * size + byte] = planes[byte * count + index];
  }
  return new arrayTypes[kind](bytes.buffer);
}

/** Returns sums of all values up to each one, as 32-bit integers. */
function cumulativeSum(differences) {
  const sums = new Uint32Array(differences.length);
  let sum = 0;
  for (let index = 0; index < sums.length; index++) sums[index] = sum = (sum + differences[index]) >>> 0;
  return sums;
}

/** Returns where each list starts, and at the end the total, from the sizes of the lists. */
function offsets(sizes) {
  const result = new Uint32Array(sizes.length + 1);
  for (let index = 0; index < sizes.length; index++) result[index + 1] = result[index] + sizes[index];
  return result;
}

/** Returns for each flag that is 1 the number of flags before it that are 1, otherwise -1. */
function positionsAmong(flags) {
  let next = 0;
  return Int32Array.from(flags, (flag) => (flag ? next++ : -1));
}

/** Returns the position of the last of the sorted values that is at most `value`. */
function lastAtMost(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return low;
}
