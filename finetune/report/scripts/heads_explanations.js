// The explanations of single rows (see explanation_data.py), and what the panels of heads and of rows share.
"use strict";

/** @type {Explanations | null} the explanations of the page after its start; null if it has none */
let explanations = null;

/**
 * @typedef {object} ExplainedRow a row with more than first-order effects; null where a copy of the page has no tokens
 * @property {number} index position among the analyzed rows
 * @property {string[] | null} tokens
 * @property {number[] | null} attributions of the tokens
 * @property {number | null} score
 * @property {number | null} baseline score without words
 * @property {number | null} gap completeness gap
 * @property {(number | null)[][] | null} effects exact effect of each head
 * @property {Object<string, Uint8Array>} attention of "layer.head", in percent: [to * tokens + from]
 */

/** The analyzed rows. A row is named by its position among them, its `index`. */
class Explanations {
  static async load() {
    if (!document.getElementById("row-explanations")) return null;
    const content = await unpackJson("row-explanations");
    return new Explanations(content, await unpack("row-effects"), new Uint8Array(await unpack("row-attention")));
  }

  constructor(content, effects, attention) {
    Object.assign(this, content);
    this.count = this.rows.length;
    this.largest = new Float32Array(effects, 0, this.withEffects);
    this.effectBytes = new Uint8Array(effects, 4 * this.withEffects);
    this.withTokens = this.explained.filter((row) => row.tokens); // as in the table of explained rows
    this.explainedByIndex = new Map(this.explained.map((row) => [row.index, row]));
    this.indexByPosition = new Map();
    this.positions.forEach((position, index) => position !== null && this.indexByPosition.set(position, index));
    let start = 0;
    for (const row of this.explained) {
      const size = (row.tokens?.length ?? 0) ** 2;
      row.attention = Object.fromEntries(row.attention.map((head, number) => (
        [head, attention.subarray(start + number * size, start + (number + 1) * size)]
      )));
      start += Object.keys(row.attention).length * size;
    }
  }

  /** Returns the label that a row's score is about; "" in regression. */
  target(index) {
    return this.targets[this.rowTargets[index]];
  }

  /** Returns "test 12". */
  name(index) {
    return `${this.splits[index]} ${this.rows[index]}`;
  }

  /**
   * Returns the effect of each head on a row, layers of heads with null for no head: exact, or the first-order estimate
   * to a 127th of the largest; null if the page has neither.
   */
  effects(index) {
    const exact = this.explainedByIndex.get(index)?.effects;
    if (exact) return exact;
    if (index >= this.withEffects) return null;
    const shape = headData.maps[0].cells;
    const width = shape[0].length;
    return shape.map((layer, number) => layer.map((_, head) => {
      const byte = this.effectBytes[(index * shape.length + number) * width + head];
      return byte === 0 ? null : ((byte - 128) / 127) * this.largest[index];
    }));
  }

  /** Returns the value of `row` in the state of the page for a row. */
  stateOf(index) {
    return String(this.positions[index] ?? `${this.splits[index]}.${this.rows[index]}`);
  }

  /** Returns the analyzed row that a state names, or null. */
  indexOf(state) {
    if (/^\d+$/.test(state)) return this.indexByPosition.get(Number(state)) ?? null;
    const index = this.rows.findIndex((_, each) => this.positions[each] === null && this.stateOf(each) === state);
    return index < 0 ? null : index;
  }

  /** Returns the text of a row as a promise, or null where the page does not contain it. */
  async text(index) {
    const position = this.positions[index];
    const text = position === null || !rows ? null : await rows.text(position);
    const tokens = this.explainedByIndex.get(index)?.tokens;
    return text ?? (tokens ? joinedTokens(tokens) : null);
  }
}

/** Returns tokens as one text; those that continue a word follow without a space. */
function joinedTokens(tokens) {
  return tokens.map((token) => (continues(token) ? token.slice(2) : ` ${token}`)).join("").trim();
}

/** Returns whether a token continues a word. */
function continues(token) {
  return token.startsWith("##") && token.length > 2;
}

/** Returns whether a token is special, such as [CLS]: it is part of the baseline, so its attribution is 0. */
function isSpecial(token, attribution) {
  return attribution === 0 && /^(\[.+\]|<.+>)$/.test(token);
}

/** Returns a number with its sign and three decimals, such as "+0.125"; small ones with two significant digits. */
function signed(value) {
  const text = value !== 0 && Math.abs(value) < 0.0005 ? value.toExponential(1) : value.toFixed(3);
  return value < 0 ? text : `+${text}`;
}

/** Returns tokens as colored elements, with a title each; the values are attributions or null. */
function tokenElements(tokens, attributions) {
  const largest = Math.max(...attributions.map(Math.abs)) || 1;
  return tokens.flatMap((token, index) => {
    const value = attributions[index];
    if (isSpecial(token, value)) return [" ", element("span", { class: "special" }, visibleText(token))];
    const level = Math.round((100 * Math.abs(value)) / largest);
    const attributes = { class: value < 0 ? "hurts" : "helps", style: `--level: ${level}`, title: signed(value) };
    const word = element("span", attributes, visibleText(continues(token) ? token.slice(2) : token));
    return continues(token) ? [word] : [" ", word];
  });
}

/** A chart of changing data. There is one for all data, because a chart listens to the page until it is closed. */
class ChangingChart {
  constructor() {
    this.place = element("div", { class: "chart", role: "img" });
    this.chart = null;
  }

  /** Shows an option and returns the element; the width may be null: that of the page. */
  show(option, label, width, height) {
    this.place.setAttribute("aria-label", label);
    this.place.style.width = width ? `${width}px` : "";
    this.place.style.height = `${height}px`;
    if (this.chart) this.chart.setOption(option);
    else this.chart = new Chart(this.place, option);
    return this.place;
  }
}

/** Returns the first `length` characters of a text. */
function shortened(text, length = 160) {
  const characters = [...text.slice(0, 4 * length)];
  return characters.length > length ? `${characters.slice(0, length).join("")}…` : text;
}

onStart(async () => {
  if (headData) explanations = await Explanations.load();
});
