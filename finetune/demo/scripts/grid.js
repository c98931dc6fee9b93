// The grid of heads: one button per head, one per layer, and the slider that keeps the most important heads.
"use strict";

const MAX_SHARE = 45; // percent of the color in the background, so that text on it stays readable

/** Returns the key of a head, "layer.head". */
const headKey = (layer, head) => `${layer}.${head}`;

/** The heads of the model, which of them are off, and the controls that change that. */
class HeadGrid {
  /**
   * @param {() => void} onChange called when heads were switched
   * @param {(layer: number, head: number) => void} onShow called with the head that was clicked last
   */
  constructor(onChange, onShow) {
    Object.assign(this, { onChange, onShow, off: new Set(), buttons: new Map(), shown: null });
    this.count = model.numHeads.reduce((sum, heads) => sum + heads, 0);
    this.draw();
    document.getElementById("all-on").addEventListener("click", () => this.setOff([]));
    document.getElementById("all-off").addEventListener("click", () => this.setOff(this.buttons.keys()));
    this.addSlider();
    this.update();
  }

  /** Replaces the heads that are off. */
  setOff(keys) {
    this.off = new Set(keys);
    this.update();
    this.onChange();
  }

  /** Returns the heads that are off as pairs of numbers, in order. */
  pairs() {
    return [...this.off].map((key) => key.split(".").map(Number)).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  }

  draw() {
    const widest = Math.max(...model.numHeads);
    const table = element("table", { class: "grid", "aria-label": "Heads: a row per layer" });
    const numbers = [...Array(widest).keys()].map((head) => element("th", { scope: "col" }, String(head)));
    table.append(element("tr", {}, element("td"), ...numbers));
    model.numHeads.forEach((heads, layer) => table.append(this.layerRow(layer, heads)));
    if (model.numHeads.length > 12) table.style.setProperty("--cell", "19px");
    if (widest > 16) table.style.minWidth = `${34 + 24 * widest}px`;
    document.getElementById("grid").append(table);
  }

  layerRow(layer, heads) {
    const keys = [...Array(heads).keys()].map((head) => headKey(layer, head));
    const toggleLayer = () => {
      const anyOn = keys.some((key) => !this.off.has(key));
      this.setOff([...[...this.off].filter((key) => !keys.includes(key)), ...(anyOn ? keys : [])]);
    };
    const name = `Layer ${layer}: switch all heads`;
    const row = element("tr", {}, element("th", { scope: "row" },
      element("button", { type: "button", onclick: toggleLayer, "aria-label": name, title: name }, String(layer))));
    keys.forEach((key, head) => {
      const button = element("button", { type: "button", "data-head": key, onclick: () => this.toggle(layer, head) });
      this.buttons.set(key, button);
      row.append(element("td", {}, button));
    });
    return row;
  }

  toggle(layer, head) {
    const key = headKey(layer, head);
    this.onShow(layer, head);
    this.setOff(this.off.has(key) ? [...this.off].filter((other) => other !== key) : [...this.off, key]);
  }

  /** Marks the head whose attention is shown. */
  show(layer, head) {
    this.shown = headKey(layer, head);
    this.update();
  }

  addSlider() {
    const [slider, note] = ["keep", "keep-note"].map((id) => document.getElementById(id));
    slider.max = this.count;
    if (!model.rankings.length) {
      slider.disabled = true;
      note.textContent = `There is no ranking of the heads: ${model.noRankings}.`;
      return;
    }
    const methods = element("select", { "aria-label": "Ranking", onchange: () => slider.dispatchEvent(new Event("input")) });
    methods.append(...model.rankings.map((ranking, index) => element("option", { value: index }, ranking.method)));
    const rows = document.createTextNode("");
    note.append("Ranked by ", methods, rows);
    const describe = () => {
      const ranking = model.rankings[methods.value];
      rows.data = ` on ${ranking.rows.toLocaleString("en")} ${ranking.split} rows.`;
      return ranking;
    };
    describe();
    slider.addEventListener("input", () => {
      const removed = describe().order.slice(0, this.count - Number(slider.value));
      this.setOff(removed.map(([layer, head]) => headKey(layer, head)));
    });
  }

  /** Shows which heads are on. */
  update() {
    for (const [key, button] of this.buttons) {
      button.setAttribute("aria-pressed", String(!this.off.has(key)));
      button.classList.toggle("shown", key === this.shown);
      this.describe(key, button);
    }
    const on = this.count - this.off.size;
    document.getElementById("heads-on").textContent = `${on} of ${this.count} heads are on`;
    document.getElementById("keep").value = on;
    document.getElementById("keep-count").textContent = on;
    document.getElementById("head-state").textContent = this.shown ? headState(this, this.shown) : "";
  }

  describe(key, button) {
    const effect = this.effects?.get(key);
    const state = this.off.has(key) ? "off" : "on";
    const words = `head ${key}, ${state}${effect === undefined ? "" : `, effect ${signed(effect)}`}`;
    button.setAttribute("aria-label", words);
    button.title = words;
    button.textContent = this.off.has(key) ? "×" : "";
  }

  /** Colors the heads by their effects, (L, H); null for no colors. */
  color(effects) {
    this.effects = new Map();
    for (const [key, button] of this.buttons) {
      const [layer, head] = key.split(".");
      const effect = effects?.[layer]?.[head];
      if (typeof effect === "number" && !this.off.has(key)) this.effects.set(key, effect);
      button.removeAttribute("style");
    }
    const largest = Math.max(0, ...[...this.effects.values()].map(Math.abs));
    for (const [key, effect] of this.effects) tint(this.buttons.get(key), effect, largest);
    this.update();
  }
}

/** Returns the state of a head in words, such as "Head 3.9 is on; its effect is +1.52." */
function headState(grid, key) {
  if (grid.off.has(key)) return `Head ${key} is off: its attention is computed, but not used.`;
  const effect = grid.effects?.get(key);
  return `Head ${key} is on${effect === undefined ? "" : `; its effect is ${signed(effect)}`}.`;
}

/** Returns a number with its sign and three significant digits, at most four decimals for small ones. */
function signed(value) {
  if (Math.abs(value) < 0.00005) return "±0.0000";
  return `${value < 0 ? "−" : "+"}${Math.abs(value) < 0.001 ? Math.abs(value).toFixed(4) : Math.abs(value).toPrecision(3)}`;
}

/** Colors an element by a number: blue for positive, orange for negative ones, stronger for larger ones. */
function tint(place, value, largest) {
  place.classList.toggle("positive", value > 0);
  place.classList.toggle("negative", value < 0);
  place.style.setProperty("--share", `${largest ? Math.round((MAX_SHARE * Math.abs(value)) / largest) : 0}%`);
}
