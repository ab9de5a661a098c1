// How good the versions are: a curve for each metric, over seconds of training or over versions, and the last values as a table.

import { Chart } from "./charts.js";
import { byId, children, duration, element, fill, number } from "./text.js";

const LAST_ROWS = 20;
const metricCharts = new Map();
let axis = "seconds";
let shown = null;

/** Return the terms that began with a takeover: the first leader takes nothing over, and after a reset its term is not 1. */
export function takeoversOf(picture) {
  const first = picture.first_term ?? Infinity;
  return picture.terms.filter((one) => one.term > first);
}

function sayEvaluated(_x, place) {
  const [version, after] = shown.evaluations[place];
  return `version ${number(version)}, after ${duration(after)}`;
}

export function showQuality(picture) {
  const { best, evaluations, metrics } = shown = picture;
  const isOverSeconds = axis === "seconds";
  byId("quality-empty").hidden = evaluations.length > 0;
  const marks = takeoversOf(picture).map((one) => (isOverSeconds ? one.seconds : one.version)).filter((x) => x !== null);
  const xs = evaluations.map((row) => row[isOverSeconds ? 1 : 0]);
  const bestMark = best && { x: isOverSeconds ? best.seconds : best.version, words: `best: version ${number(best.version)}` };
  metrics.forEach((name, place) => {
    if (!metricCharts.has(name)) {
      const curves = [{ stroke: place % 2 ? "--two" : "--one" }];
      metricCharts.set(name, new Chart(byId("quality"), name, { say: number, sayX: sayEvaluated, curves }));
    }
    metricCharts.get(name).show(xs, [evaluations.map((row) => row[2 + place])], marks, bestMark);
  });
  for (const [name, chart] of metricCharts) chart.figure.hidden = !metrics.includes(name);
  const heads = ["version", "after", ...metrics];
  const cells = children(byId("evaluations-head"), heads.length, () => element("th", "", { scope: "col" }));
  heads.forEach((word, place) => { cells[place].textContent = word; });
  const rows = evaluations.slice(-LAST_ROWS).reverse();
  fill(byId("evaluations"), rows.map(([version, after, ...values]) => [number(version), duration(after), ...values.map(number)]));
}

for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => {
    axis = button.dataset.axis;
    for (const each of document.querySelectorAll("[data-axis]")) each.setAttribute("aria-pressed", String(each === button));
    if (shown) showQuality(shown);
  });
}
