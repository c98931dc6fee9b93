// What every page shares: reading embedded data, the state in the address, start of the page.
//
// The scripts of a page are classic scripts in one global scope, included in order. Each function says in a comment
// what it returns; text of users goes into the page through `textContent` only.
"use strict";

const startFunctions = [];

/** Calls a function when the page has been parsed; functions run in the order of their registration. */
function onStart(start) {
  startFunctions.push(start);
}

document.addEventListener("DOMContentLoaded", async () => {
  for (const start of startFunctions) {
    try {
      await start();
    } catch (error) {
      console.error(error); // the other parts of the page still start
    }
  }
  document.documentElement.dataset.ready = "true"; // tests wait for it
});

/** Returns the bytes of an embedded element (see embedding.py) as an ArrayBuffer. */
async function unpack(name) {
  const encoded = atob(document.getElementById(name).textContent);
  const bytes = new Uint8Array(encoded.length);
  for (let index = 0; index < encoded.length; index++) bytes[index] = encoded.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Returns the text of an embedded element. */
async function unpackText(name) {
  return new TextDecoder().decode(await unpack(name));
}

/** Returns the value of an embedded JSON element. */
async function unpackJson(name) {
  return JSON.parse(await unpackText(name));
}

/** Returns a new element; attributes of the form `onclick` are functions, a child is an element or a text. */
function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) created.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) created.setAttribute(name, value);
  }
  created.append(...children);
  return created;
}

/** Returns a text as HTML that shows it: for tooltips and labels of charts, which take HTML. */
function escaped(text) {
  const replacements = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (character) => replacements[character]);
}

// ---- State of the page, kept in the address (#key=value&...), so that a view can be sent to someone.

const stateListeners = [];

/** Returns the value of a key of the state, or null. */
function getState(key) {
  return new URLSearchParams(location.hash.slice(1)).get(key);
}

/** Changes keys of the state (null removes a key) and calls the listeners once. */
function setState(changes) {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const key of [...state.keys()]) if (state.get(key) === "") state.delete(key); // the name of a section
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "") state.delete(key);
    else state.set(key, value);
  }
  history.replaceState(null, "", `#${state}`);
  notifyState(Object.keys(changes));
}

/** Calls `listener` when one of the keys changes, and once at registration. */
function onState(keys, listener) {
  stateListeners.push({ keys, listener });
  listener();
}

function notifyState(changed) {
  for (const { keys, listener } of stateListeners) if (keys.some((key) => changed.includes(key))) listener();
}

window.addEventListener("hashchange", () => notifyState(stateListeners.flatMap(({ keys }) => keys)));
