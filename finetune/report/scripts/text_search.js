// Search of the texts by a regular expression, in a worker: an expression such as (a+)+$ can take years, and only a
// worker can be stopped.
"use strict";

let searchSeconds = 10; // after which a search is stopped
let searchWorker = null;
let searches = Promise.resolve(); // one at a time
const slowExpressions = new Set();

/** Returns for each text index (ascending) 1 if its text matches; `chunks` are lists of texts. Runs in the worker. */
function matchFlags(chunks, { source, flags, indices, starts, fields }) {
  const expression = new RegExp(source, flags);
  let chunk = 0;
  return Uint8Array.from(indices, (index) => {
    while (index >= (starts[chunk + 1] ?? Infinity)) chunk++;
    const start = (index - starts[chunk]) * fields;
    return Number(expression.test(chunks[chunk].slice(start, start + fields).join("\n")));
  });
}

/** Starts the worker. It keeps the chunks of texts that it was sent. */
function startSearchWorker() {
  const program = `${matchFlags}; const chunks = [];
    onmessage = ({ data }) => { if (data.texts) chunks[data.chunk] = data.texts; else postMessage(matchFlags(chunks, data)); };`;
  const address = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
  searchWorker = new Worker(address);
  searchWorker.sent = new Set();
}

/** Returns the flags of a search by the worker, or null if it was stopped because it took too long. */
function searched(request) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      searchWorker.terminate();
      searchWorker = null;
      resolve(null);
    }, 1000 * searchSeconds);
    searchWorker.onmessage = ({ data }) => {
      clearTimeout(timer);
      resolve(data);
    };
    searchWorker.postMessage(request);
  });
}

async function search(positions, expression) {
  const { starts, fields } = rows.texts;
  const textIndex = (position) => (rows.textIndex ? rows.textIndex[position] : position);
  const withText = filtered(positions, (position) => fields > 0 && textIndex(position) >= 0);
  if (!withText.length) return withText;
  const indices = Uint32Array.from(withText, textIndex);
  if (!searchWorker) startSearchWorker();
  for (const chunk of new Set(Array.from(indices, (index) => lastAtMost(starts, index)))) {
    if (searchWorker.sent.has(chunk)) continue;
    searchWorker.postMessage({ chunk, texts: await rows.textChunk(chunk) });
    searchWorker.sent.add(chunk);
  }
  const flags = await searched({ source: expression.source, flags: expression.flags, indices, starts, fields });
  return flags && withText.filter((_, place) => flags[place]);
}

/** Returns the positions of the rows whose embedded text matches an expression, or null if that takes too long. */
function matching(positions, expression) {
  searches = searches.then(() => search(positions, expression));
  return searches;
}
