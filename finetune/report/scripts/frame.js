// The frame of every page: color theme, links to the sections, tables that scroll. It stands before the embedded data
// in the page, so that it works while a large page is still being read.
"use strict";

// ---- Color theme: that of the system until the reader chooses one.

const themeListeners = [];
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;

/** Returns "light" or "dark". */
function currentTheme() {
  return document.documentElement.dataset.theme;
}

/** Calls `listener` after each change of the theme. */
function onTheme(listener) {
  themeListeners.push(listener);
}

/** Sets the theme; null follows the system. */
function setTheme(theme) {
  chosenTheme = theme;
  showTheme(theme ?? (systemIsDark.matches ? "dark" : "light"));
}

/** Shows the page in a theme without choosing it. */
function showTheme(theme) {
  if (theme === currentTheme()) return;
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").setAttribute("aria-pressed", theme === "dark");
  for (const listener of themeListeners) listener();
}

systemIsDark.addEventListener("change", () => setTheme(chosenTheme));

// Paper is white: charts are drawn in light colors for printing.
let themeBeforePrint = null;
window.addEventListener("beforeprint", () => {
  themeBeforePrint = currentTheme();
  showTheme("light");
});
window.addEventListener("afterprint", () => showTheme(themeBeforePrint));

// ---- Links to the sections

/** Scrolls to an element and moves the focus to it. The state in the address stays as it is. */
function goTo(target) {
  if (!target.hasAttribute("tabindex")) target.setAttribute("tabindex", "-1");
  target.focus({ preventScroll: true });
  target.scrollIntoView();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const target = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!target) return;
  event.preventDefault();
  openMenu(false);
  goTo(target);
});

/** Opens or closes the menu of a narrow screen. */
function openMenu(open) {
  document.getElementById("links").classList.toggle("open", open);
  document.getElementById("menu").setAttribute("aria-expanded", open);
}

/** Fills the menu with the sections that have a `data-menu`, and marks the one that is on the screen. */
function buildMenu() {
  const links = document.getElementById("links");
  const marker = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.children) link.removeAttribute("aria-current");
      [...links.children].find((link) => link.hash === `#${entry.target.id}`).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const section of document.querySelectorAll("[data-menu]")) {
    const link = document.createElement("a");
    link.href = `#${section.id}`;
    link.textContent = section.dataset.menu;
    links.append(link);
    marker.observe(section);
  }
  const button = document.getElementById("menu");
  button.hidden = links.children.length === 0;
  button.addEventListener("click", () => openMenu(button.getAttribute("aria-expanded") !== "true"));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !links.classList.contains("open")) return;
    openMenu(false);
    button.focus();
  });
}

buildMenu();

// ---- Tables that are wider than the screen can be scrolled with the keyboard.

const scrollWatcher = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls = target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1;
    if (scrolls) target.setAttribute("tabindex", "0");
    else target.removeAttribute("tabindex");
  }
});

/** Makes the elements of class `scroll` inside an element reachable by keyboard whenever they are too wide. */
function watchScrolling(parent) {
  for (const place of parent.querySelectorAll(".scroll, pre")) {
    scrollWatcher.observe(place);
    if (place.firstElementChild) scrollWatcher.observe(place.firstElementChild);
  }
}

watchScrolling(document);

const themeButton = document.getElementById("theme");
themeButton.hidden = false;
themeButton.setAttribute("aria-pressed", currentTheme() === "dark");
themeButton.addEventListener("click", () => setTheme(currentTheme() === "dark" ? "light" : "dark"));
