// The table of workers: the server sorts and searches, and this shows the page of rows that is asked for.

import { byId, duration, element, fill, number, oneDigit, share, sparkline, write } from "./text.js";

const ago = (seconds) => (seconds === null ? "never" : `${duration(seconds)} ago`);
const COLUMNS = [
  ["name", "worker", (name) => name],
  ["state", "state", (text) => text || "–"],
  ["seen_s", "last seen", ago],
  ["round_s", "round", duration],
  ["updates", "updates", number],
  ["examples", "examples", number],
  ["mean_staleness", "mean staleness", oneDigit],
  ["weight_share", "share of weight", share],
  ["rejected", "refused", number],
  ["loss", "training loss, round by round", (loss, row) => (loss === null ? "–" : `${sparkline(row.losses)} ${number(loss)}`)],
];
const NUMERIC = [2, 3, 4, 5, 6, 7, 8];
const wanted = { sort: "name", order: "ascending", search: "", page: 0 };

/** Make the head and the tools; `ask` is called when another page of rows is wanted. */
export function prepare(ask) {
  const head = byId("workers-head");
  COLUMNS.forEach(([key, word], place) => {
    const cell = element("th", "", { scope: "col", "data-column": key });
    cell.classList.toggle("number", NUMERIC.includes(place));
    const button = element("button", word, { type: "button" });
    button.addEventListener("click", () => {
      // Of numbers one wants the largest first.
      const first = place < 2 ? "ascending" : "descending";
      const other = wanted.order === "ascending" ? "descending" : "ascending";
      wanted.order = wanted.sort === key ? other : first;
      wanted.sort = key;
      wanted.page = 0;
      showOrder();
      ask();
    });
    cell.append(button);
    head.append(cell);
  });
  showOrder();
  byId("search").addEventListener("input", (event) => {
    wanted.search = event.target.value;
    wanted.page = 0;
    ask();
  });
  byId("previous").addEventListener("click", () => { wanted.page -= 1; ask(); });
  byId("next").addEventListener("click", () => { wanted.page += 1; ask(); });
}

export function query() {
  return new URLSearchParams(wanted).toString();
}

export function show(table) {
  wanted.page = table.page;
  const rows = table.rows.map((row) => COLUMNS.map(([key, , words]) => words(row[key], row)));
  fill(byId("workers-rows"), rows, NUMERIC).forEach((made, place) => {
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
