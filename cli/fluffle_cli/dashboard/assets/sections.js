// What the pages that are files are made of: sections, tables, and several curves in one chart.

import { element, fill } from "./text.js";

export const STROKES = ["--one", "--two", "--mark", "--three", "--four", "--five"];

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

/** Show several curves over the same x, each of which has points of its own. */
export function showTogether(chart, curves, marks) {
  const [xs, ...columns] = uPlot.join(curves.map((points) => [points.map(([x]) => x), points.map(([, y]) => y)]));
  chart.show(xs, columns, marks);
}
