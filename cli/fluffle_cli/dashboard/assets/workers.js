// The table of workers: shows the page of rows that is wanted, which the server or report.js has sorted and searched.

import { byId, duration, element, fill, number, oneDigit, share, sparkline, write } from "./text.js";

const ago = (seconds) => (seconds === null ? "never" : `${duration(seconds)} ago`);
// How many there were in the last round, and of how many examples.
const minibatches = (steps, row) => {
  if (steps === null) return "–";
  return row.batch_size === null ? number(steps) : `${number(steps)} × ${number(row.batch_size)}`;
};
const COLUMNS = [
  { key: "name", word: "worker", say: (name) => name },
  { key: "state", word: "state", say: (text) => text || "–" },
  { key: "seen_s", word: "last seen", say: ago, isNumber: true },
  { key: "round_s", word: "round", say: duration, isNumber: true },
  { key: "steps", word: "minibatches", say: minibatches, isNumber: true },
  { key: "updates", word: "updates", say: number, isNumber: true },
  { key: "examples", word: "examples", say: number, isNumber: true },
  { key: "mean_staleness", word: "mean staleness", say: oneDigit, isNumber: true },
  { key: "weight_share", word: "share of weight", say: share, isNumber: true },
  { key: "example_share", word: "share of examples", say: share, isNumber: true },
  { key: "model_share", word: "share of model", say: share, isNumber: true },
  { key: "rejected", word: "refused", say: number, isNumber: true },
  {
    key: "loss",
    word: "training loss, round by round",
    say: (loss, row) => (loss === null ? "–" : `${sparkline(row.losses)} ${number(loss)}`),
  },
];
export const wanted = { sort: "name", order: "ascending", search: "", page: 0 };

/** Make the head and the tools; `ask` is called when another page of rows is wanted. */
export function prepareWorkers(ask) {
  const head = byId("workers-head");
  for (const { key, word, isNumber } of COLUMNS) {
    const cell = element("th", "", { scope: "col", "data-column": key });
    cell.classList.toggle("number", Boolean(isNumber));
    const button = element("button", word, { type: "button" });
    button.addEventListener("click", () => {
      // Of numbers one wants the largest first.
      const first = key === "name" || key === "state" ? "ascending" : "descending";
      const other = wanted.order === "ascending" ? "descending" : "ascending";
      wanted.order = wanted.sort === key ? other : first;
      wanted.sort = key;
      wanted.page = 0;
      showOrder();
      ask();
    });
    cell.append(button);
    head.append(cell);
  }
  showOrder();
  byId("search").addEventListener("input", (event) => {
    wanted.search = event.target.value;
    wanted.page = 0;
    ask();
  });
  byId("previous").addEventListener("click", () => { wanted.page -= 1; ask(); });
  byId("next").addEventListener("click", () => { wanted.page += 1; ask(); });
}

export function showWorkers(table) {
  wanted.page = table.page;
  const rows = table.rows.map((row) => COLUMNS.map(({ key, say }) => say(row[key], row)));
  const numeric = [...COLUMNS.keys()].filter((place) => COLUMNS[place].isNumber);
  fill(byId("workers-rows"), rows, numeric).forEach((made, place) => {
    made.dataset.row = JSON.stringify(table.rows[place]);
  });
  write(byId("found"), table.found === table.workers ? `${number(table.workers)} workers` : `${number(table.found)} of ${number(table.workers)} workers`);
  write(byId("page"), `page ${table.page + 1} of ${table.pages}`);
  byId("previous").disabled = table.page === 0;
  byId("next").disabled = table.page + 1 >= table.pages;
}

function showOrder() {
  for (const cell of byId("workers-head").children) {
    cell.setAttribute("aria-sort", cell.dataset.column === wanted.sort ? wanted.order : "none");
  }
}
