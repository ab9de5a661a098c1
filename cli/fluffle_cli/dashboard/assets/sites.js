// What each site has measured on the data that it holds out, and what that is over all sites. Hidden until a site reports.

import { byId, element, children, fill, number, write } from "./text.js";

/** Mark what is no mean of all data, but of the sites' values. */
const nameOf = (one) => (one.pooling === "site_mean" ? `${one.name} (mean of the sites)` : one.name);

function ofAll(over) {
  return over.map((one) => [
    nameOf(one), number(one.mean), `${number(one.lowest)} (${one.lowest_site || "–"})`,
    `${number(one.highest)} (${one.highest_site || "–"})`, number(one.spread), number(one.sites),
    one.not_finite.join(", ") || "–",
  ]);
}

function ofEach({ metric, over, rows }) {
  const names = over.map((one) => one.name);
  const heads = ["site", "version", "versions ago", "examples", ...names, `${metric} before and after its own round`];
  const cells = children(byId("sites-head"), heads.length, () => element("th", "", { scope: "col" }));
  heads.forEach((word, place) => write(cells[place], word));
  const numeric = [...heads.keys()].slice(1, -1);
  fill(byId("sites-rows"), rows.map((row) => [
    row.name, number(row.version), number(row.age), number(row.examples), ...names.map((name) => number(row.metrics[name])),
    row.after === null ? "–" : `${number(row.before)} → ${number(row.after)}`,
  ]), numeric).forEach((made, place) => { made.dataset.row = JSON.stringify(rows[place]); });
}

export function showSites({ sites }) {
  byId("sites").hidden = !sites;
  if (!sites) return;
  fill(byId("over-sites"), ofAll(sites.over), [1, 4, 5]);
  ofEach(sites);
  const { gain, rows } = sites;
  const gained = gain === null ? "" : ` A site's own round changes ${sites.metric} there by ${number(gain)} on average.`;
  const left = sites.sites > rows.length ? ` The worst ${number(rows.length)} of ${number(sites.sites)} are shown.` : "";
  write(byId("sites-said"), `The worst site stands first.${left}${gained}`);
}
