// What the pages that are files are made of: sections, tables, and several curves in one chart.

import { Chart } from "./charts.js";
import { element, fill } from "./text.js";

const STROKES = ["--one", "--two", "--mark", "--three", "--four", "--five"];

export function section(title, ...content) {
  const made = element("section");
  made.append(element("h2", title), ...content);
  return made;
}

export function tableOf(name, heads, rows = []) {
  const wide = element("div", "", { class: "wide", tabindex: "0", role: "region", "aria-label": name });
  const [table, head, titles] = [element("table"), element("thead"), element("tr")];
  const body = element("tbody");
  titles.append(...heads.map((word) => element("th", word, { scope: "col" })));
  head.append(titles);
  table.append(head, body);
  wide.append(table);
  fill(body, rows);
  return { wide, body };
}

/** Show several curves over the same x, each of which has points of its own: x and value, or also the least and the largest. */
function showTogether(chart, curves, marks) {
  const columns = curves.map((points) => points[0]?.length ?? 2);
  const tables = curves.map((points, nth) => Array.from({ length: columns[nth] }, (_, place) => points.map((point) => point[place])));
  const [xs, ...joined] = uPlot.join(tables);
  const ofCurve = columns.map((width) => joined.splice(0, width - 1));
  chart.show(xs, ofCurve.map(([ys]) => ys), marks, null, ofCurve.flatMap(([, ...range]) => range));
}

/** Add the chart of a comparison to `parent`: curves, each in its own colour, and dashed lines at some values. */
export function compare(parent, title, curves, lines, marks, words) {
  const end = Math.max(1, ...curves.map(({ points }) => points.at(-1)?.[0] ?? 0));
  const all = [
    ...curves.map((one, place) => ({ ...one, stroke: STROKES[place % STROKES.length], hasRange: one.points[0]?.length > 2 })),
    ...lines.map(([name, y]) => ({ name, points: [[0, y], [end, y]], stroke: "--faint", dash: [8, 5] })),
  ];
  showTogether(new Chart(parent, title, { ...words, curves: all }), all.map(({ points }) => points), marks);
}
