// Charts, drawn by Apache ECharts in the colors of the page (CSS variables of style.css).
"use strict";

let chartLibrary = null;

/** Loads the embedded chart library once. */
function loadChartLibrary() {
  chartLibrary ??= unpackText("chart-library").then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
  });
  return chartLibrary;
}

/** Returns the value of a CSS variable of the page, such as color("ink"). */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A chart in an element. The option may be a function that returns it: it is called again when the theme changes. */
class Chart {
  /**
   * @param {HTMLElement} place an element with a height
   * @param {object | () => object} option an ECharts option, or a function that returns one
   * @param {(event: object) => void} [onClick] called with the ECharts event of a clicked item
   */
  constructor(place, option, onClick = null) {
    this.place = place;
    this.option = option;
    this.onClick = onClick;
    this.drawn = null;
    this.isNear = false; // whether it is on the screen, or soon will be
    this.isOutdated = true;
    new IntersectionObserver((entries) => {
      this.isNear = entries.at(-1).isIntersecting;
      if (this.isNear && this.isOutdated) this.draw();
    }, { rootMargin: "400px" }).observe(place);
    onTheme(() => this.update());
    new ResizeObserver(() => this.drawn?.resize()).observe(place);
    window.addEventListener("beforeprint", () => this.draw());
  }

  /** Draws the chart again, now or when it comes near the screen. */
  update() {
    this.isOutdated = true;
    if (this.isNear) this.draw();
  }

  /** Draws the chart: at once if the library is loaded, as when the page is printed. */
  draw() {
    if (typeof echarts === "undefined") return loadChartLibrary().then(() => this.draw());
    if (!this.drawn) {
      this.drawn = echarts.init(this.place, null, { renderer: "svg" });
      if (this.onClick) this.drawn.on("click", this.onClick);
    }
    this.isOutdated = false;
    const option = typeof this.option === "function" ? this.option() : this.option;
    this.drawn.setOption(withPageColors(option), { notMerge: true });
  }

  /** Replaces the option. */
  setOption(option) {
    this.option = option;
    this.update();
  }
}

/** Returns an option with the font and the colors of the page where the option names none. */
function withPageColors(option) {
  const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map(color);
  const axis = (given) => ({
    ...given,
    nameTextStyle: { color: soft, ...given.nameTextStyle },
    axisLabel: { color: soft, ...given.axisLabel },
    axisLine: { lineStyle: { color: line }, ...given.axisLine },
    splitLine: { lineStyle: { color: line }, ...given.splitLine },
  });
  const each = (value) => (value === undefined ? undefined : [value].flat().map(axis));
  return {
    animation: false,
    color: ["blue", "orange", "green", "purple", "red", "cyan", "gold", "olive", "pink", "gray"].map(color),
    backgroundColor: "transparent",
    aria: { enabled: true, label: { enabled: false } }, // the element has a label
    ...option,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: ink, ...option.textStyle },
    legend: option.legend && { textStyle: { color: ink }, ...option.legend },
    tooltip: option.tooltip && {
      backgroundColor: card, borderColor: line, textStyle: { color: ink }, confine: true, ...option.tooltip,
    },
    visualMap: option.visualMap && [option.visualMap].flat().map((map) => ({ textStyle: { color: soft }, ...map })),
    series: option.series && [option.series].flat().map((line) => (
      line.type === "line" ? { symbol: "circle", ...line } : line)), // the default is white inside, also on dark pages
    xAxis: each(option.xAxis),
    yAxis: each(option.yAxis),
  };
}

/** Returns a copy of a value from Python in which each text such as "var(--blue)" is that color of the page. */
function withNamedColors(value) {
  if (typeof value === "string") return value.replace(/^var\(--([a-z-]+)\)$/, (_, name) => color(name));
  if (Array.isArray(value)) return value.map(withNamedColors);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, withNamedColors(each)]));
}

// Charts that Python describes completely (the function `chart_element` of charts.py).
onStart(() => {
  for (const place of document.querySelectorAll("[data-option]")) {
    const option = JSON.parse(place.dataset.option);
    new Chart(place, () => withNamedColors(option));
  }
  // Printing cannot wait for the library, so it is loaded as soon as the browser has nothing else to do.
  const idle = window.requestIdleCallback ?? setTimeout;
  if (document.querySelector(".chart")) idle(() => loadChartLibrary());
});
