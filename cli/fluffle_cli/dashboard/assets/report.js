// The page of a report: shows a run from the data that stand in the page, with the sections of the live page and some more.

import { Chart } from "./charts.js";
import { say, showFederation } from "./page.js";
import { takeoversOf } from "./quality.js";
import { compare, section, tableOf } from "./sections.js";
import { byId, duration, element, fill, number, oneDigit, write } from "./text.js";
import { prepareWorkers, showWorkers, wanted } from "./workers.js";

const PAGE_ROWS = 50;
const run = JSON.parse(byId("run").textContent);
let chosen = run.federations.at(-1);

function results() {
  const { metric, curves, lines } = run.compared;
  const made = section("Results");
  made.id = "results";
  // Drawn in the page, so that its width is known.
  document.querySelector("main").prepend(made);
  made.append(element("p", run.verdict));
  const title = `${metric} on held-out data, over seconds since the first round began`;
  const marks = curves.map((one) => one.reached).filter((at) => at !== null);
  compare(made, title, curves, lines, marks, { say: number, sayX: duration });
  if (curves.some(({ points }) => points[0]?.length > 2)) {
    made.append(element("p", "The bands go from the least to the largest value of the seeds. After its end, a run counts with its last value."));
  }
  made.append(tableOf("Results", ...run.results).wide);
  const [heads, rows] = run.seeds;
  if (rows.length) made.append(element("p", "Seed by seed:"), tableOf("Seed by seed", heads, rows).wide);
}

const course = {
  counts: new Chart(byId("activity"), "updates and refusals, summed up", {
    say: number,
    sayX: duration,
    curves: [{ name: "applied", stroke: "--one" }, { name: "refused", stroke: "--bad" }],
  }),
  staleness: new Chart(byId("activity"), "mean staleness of a version's updates", { say: oneDigit, sayX: duration }),
};
const senders = tableOf("Refused messages by sender", ["sender", "messages"]);
const timeLine = tableOf("Time line", ["when", "who", "what", "details"]);
const more = element("p");

function showCourse({ state, course: rows }) {
  const marks = takeoversOf(state).map((one) => one.seconds).filter((at) => at !== null);
  const xs = rows.map((row) => row[0]);
  course.counts.show(xs, [1, 2].map((column) => rows.map((row) => row[column])), marks);
  course.staleness.show(xs, [rows.map((row) => row[3])], marks);
}

/** Return a page of the workers, as the server of the live page does: unknown values come last. */
function pageOfWorkers({ workers }) {
  const sought = wanted.search.toLowerCase();
  const found = workers.filter((row) => [row.name, row.state].some((text) => text.toLowerCase().includes(sought)));
  const direction = wanted.order === "ascending" ? 1 : -1;
  const order = (value) => (typeof value === "string" && wanted.sort === "loss" ? Infinity : value);
  found.sort((one, other) => {
    const [a, b] = [order(one[wanted.sort]), order(other[wanted.sort])];
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * ((a > b) - (a < b));
  });
  const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
  const page = Math.min(Math.max(0, wanted.page), pages - 1);
  const rows = found.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS);
  return { workers: workers.length, found: found.length, page, pages, rows };
}

function show() {
  const { state, senders: counts, happened, left } = chosen;
  showFederation(state, "without a reason in the run's files.");
  const since = Object.values(state.reasons).reduce((sum, count) => sum + count, 0) - state.rejected;
  if (since > 0) write(byId("rejections-unheard"), `The newest version does not count ${number(since)} of these: they came later.`);
  showCourse(chosen);
  showWorkers(pageOfWorkers(chosen));
  write(byId("federation"), run.title);
  document.title = run.title;
  if (!state.finished) say("not finished when this report was made", "good");
  senders.wide.hidden = counts.length === 0;
  fill(senders.body, counts.map(([name, count]) => [name, number(count)]), [1]);
  fill(timeLine.body, happened);
  write(more, left ? `And ${number(left)} more.` : "");
}

function prepareChoice() {
  const choice = element("div", "", { class: "choice", role: "group", "aria-label": "Federation" });
  const buttons = run.federations.map((federation) => {
    const button = element("button", federation.name, { type: "button", "aria-pressed": String(federation === chosen) });
    button.addEventListener("click", () => {
      chosen = federation;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
      show();
    });
    return button;
  });
  choice.append(...buttons);
  if (buttons.length > 1) byId("results").after(choice);
}

document.body.classList.add("report");
write(byId("now-title"), "At the end");
Object.assign(wanted, { sort: "updates", order: "descending" });
results();
prepareChoice();
byId("reasons-table").after(senders.wide);
document.querySelector("main").append(
  section("Time line", timeLine.wide, more),
  section("Settings", tableOf("Settings", ["setting", "value"], run.settings).wide),
  section("Versions", tableOf("Versions of the software", ["software", "version"], run.versions).wide),
  element("p", `Made by fluffle report from ${run.folder}.`),
);
prepareWorkers(() => showWorkers(pageOfWorkers(chosen)));
show();
