// What the sections that follow the slice share: a name of the slice, links that choose rows, error bars.
"use strict";

/** Returns a share as a percentage, such as "12.5 %". */
function percentText(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

/** Returns "1 row" or "1,234 rows". */
function rowsText(count) {
  return count === 1 ? "1 row" : `${count.toLocaleString("en")} rows`;
}

/** Returns a text with a capital first letter. */
function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

const splitsOfSlices = new WeakMap();

/** Returns the name of the split if the slice is exactly all of its rows, otherwise null. */
function splitOfSlice(positions) {
  if (!splitsOfSlices.has(positions)) splitsOfSlices.set(positions, findSplit(positions));
  return splitsOfSlices.get(positions);
}

function findSplit(positions) {
  if (!positions.length) return null;
  const split = rows.split[positions[0]];
  for (const position of positions) if (rows.split[position] !== split) return null;
  let total = 0;
  for (const value of rows.split) if (value === split) total++;
  return total === positions.length ? rows.splits[split] : null;
}

/** Returns "test split, 1,821 rows" or "312 chosen rows". */
function sliceTitle(positions) {
  const split = splitOfSlice(positions);
  if (split) return `${split} split, ${rowsText(positions.length)}`;
  return positions.length === 1 ? "1 chosen row" : `${positions.length.toLocaleString("en")} chosen rows`;
}

let rightRows = null;

/** Returns for each row of the page 1 if it was predicted correctly, otherwise 0. */
function correctness() {
  rightRows ??= Uint8Array.from({ length: rows.count }, (_, position) => Number(rows.correct(position)));
  return rightRows;
}

/** Returns positions sorted by an integer below 2 ** 24 per position; equal ones keep their order. */
function sortedByKey(positions, keyOf) {
  const keys = new Float64Array(positions.length); // sorts faster than a comparison function
  for (let index = 0; index < keys.length; index++) keys[index] = keyOf(positions[index]) * 2 ** 28 + index;
  keys.sort();
  return Uint32Array.from(keys, (key) => positions[key % 2 ** 28]);
}

/** Changes the content of an element; if a link in it had the focus, the link with the same text gets it back. */
function keepingFocus(place, change) {
  const links = () => [...place.querySelectorAll("a")];
  const index = links().indexOf(document.activeElement);
  const text = document.activeElement.textContent;
  change();
  if (index < 0) return;
  const same = links().filter((link) => link.textContent === text);
  (same.includes(links()[index]) ? links()[index] : same[0])?.focus({ preventScroll: true });
}

/** Returns a link that changes the state. */
function stateLink(changes, text) {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of Object.entries(changes)) if (value !== null) state.set(key, value);
  const choose = (event) => {
    event.preventDefault();
    setState({ ...changes, page: null });
  };
  return element("a", { href: `#${state}`, onclick: choose }, text);
}

/** Returns a chart in the element with this id, or null if the page has none. */
function chartIn(id, onClick = null) {
  const place = document.getElementById(id);
  return place && new Chart(place, { series: [] }, onClick);
}

/** Returns a series of vertical bars from low to high; an item is [x, low, high]. */
function errorBars(items, colorName) {
  return {
    type: "custom",
    data: items,
    encode: { x: 0, y: [1, 2] },
    itemStyle: { color: color(colorName) },
    silent: true,
    z: 1,
    renderItem: (params, api) => {
      const [low, high] = [1, 2].map((end) => api.coord([api.value(0), api.value(end)]));
      const line = (x1, y1, x2, y2) => ({
        type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: api.visual("color"), lineWidth: 1.5 },
      });
      return {
        type: "group",
        children: [line(...low, ...high), ...[low, high].map(([x, y]) => line(x - 4, y, x + 4, y))],
      };
    },
  };
}

/** Returns an axis of values from 0 to 100 %, or of a part of that range. */
function percentAxis(name, range = {}) {
  return {
    type: "value", name, nameLocation: "middle", nameGap: 30, ...range,
    axisLabel: { formatter: (share) => `${Math.round(100 * share)} %`, hideOverlap: true },
  };
}
