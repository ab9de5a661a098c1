// Curves, drawn by uPlot (vendor/). Each is a figure whose caption and label say in words what it shows.

import { element, write } from "./text.js";

const HEIGHT = 200;
const charts = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Chart {
  /**
   * Add a figure to `parent`. `say` turns a value into words, `sayX` an x and its place, `isTime` says that x is Unix seconds.
   * Each of `curves` has a `stroke`, the name of a colour in style.css. Several curves each have a `name`, and a `dash` if
   * they are lines to compare with. One that `hasRange` has a band around it.
   */
  constructor(parent, title, { say, sayX, isTime = false, curves = [{ stroke: "--one" }] }) {
    this.title = title;
    this.say = say;
    this.sayX = sayX;
    this.isTime = isTime;
    this.curves = curves;
    this.marks = [];
    this.best = null;
    this.columns = [];
    this.data = [[], ...curves.map(() => [])];
    this.figure = element("figure");
    const caption = element("figcaption");
    caption.append(element("span", title));
    this.values = curves.map(({ name, stroke }) => {
      // No <output>, which a screen reader reads out whenever it changes: once a second.
      const value = element("span", "", { class: "value" });
      if (name) value.style.color = `var(${stroke})`;
      caption.append(value);
      return value;
    });
    this.plot = element("div", "", { class: "plot", role: "img" });
    this.figure.append(caption, this.plot);
    parent.append(this.figure);
    this.width = 0;
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.plot);
    charts.add(this);
  }

  /**
   * Show the curves, each of which has a column of values, a vertical line at each of `marks`, and one with its words at
   * `best`, if there is one. Where a value is not finite, it is a text. `ranges` has two columns for each curve that
   * `hasRange`: the least values and the largest.
   */
  show(xs, columns, marks = [], best = null, ranges = []) {
    this.columns = columns;
    this.data = [xs, ...[...columns, ...ranges].map((ys) => ys.map((y) => (typeof y === "number" ? y : null)))];
    this.marks = marks;
    this.best = best;
    if (!this.drawn) this.draw();
    else this.drawn.setData(this.data);
    this.caption(this.drawn.cursor.idx);
  }

  fit() {
    const width = this.plot.clientWidth;
    if (!this.drawn || !width || width === this.width) return;
    this.width = width;
    this.drawn.setSize({ width, height: HEIGHT });
  }

  draw() {
    this.drawn?.destroy();
    this.width = this.plot.clientWidth || 320;
    const ink = colour("--faint");
    const line = { spanGaps: true, points: { show: false } };
    const banded = this.curves.filter(({ hasRange }) => hasRange);
    const axis = { stroke: ink, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    this.drawn = new uPlot(
      {
        width: this.width,
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
        scales: { x: { time: this.isTime } },
        axes: [
          // A date is a line of its own.
          this.isTime ? { ...axis, values: (_plot, ticks) => ticks.map((tick) => this.sayX(tick).replace(", ", "\n")), space: 80 } : axis,
          { ...axis, size: 60, values: (_plot, ticks) => ticks.map((tick) => this.say(tick)) },
        ],
        series: [
          {},
          ...this.curves.map(({ stroke, dash }) => ({ ...line, stroke: colour(stroke), width: dash ? 1 : 2, dash })),
          ...banded.flatMap(({ stroke }) => [0, 1].map(() => ({ ...line, stroke: `${colour(stroke)}66`, width: 1 }))),
        ],
        bands: banded.map(({ stroke }, nth) => {
          const least = 1 + this.curves.length + 2 * nth;
          return { series: [least + 1, least], fill: `${colour(stroke)}22` };
        }),
        hooks: { draw: [(plot) => this.drawMarks(plot)], setCursor: [(plot) => this.caption(plot.cursor.idx)] },
      },
      this.data,
      this.plot,
    );
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--mark");
    ctx.setLineDash([4, 4]);
    const lineAt = (mark) => {
      const x = plot.valToPos(mark, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) return null;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      return x;
    };
    this.marks.forEach(lineAt);
    if (this.best !== null) {
      ctx.strokeStyle = ctx.fillStyle = colour("--good");
      ctx.setLineDash([]);
      const x = lineAt(this.best.x);
      ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
      if (x !== null) ctx.fillText(` ${this.best.words} `, x, bbox.top + 14 * devicePixelRatio);
    }
    ctx.restore();
  }

  /** Say the values under the pointer, or else the newest. */
  caption(place) {
    const best = this.best ? `, ${this.best.words}` : "";
    const said = this.columns.map((ys, nth) => {
      const { name, dash } = this.curves[nth];
      const text = dash ? name : [name, this.valueAt(ys, place)].filter(Boolean).join(": ");
      write(this.values[nth], text);
      const known = ys.filter((y) => typeof y === "number");
      return known.length && !dash ? `${text}, from ${this.say(Math.min(...known))} to ${this.say(Math.max(...known))}` : text;
    });
    this.plot.setAttribute("aria-label", `Curve of ${this.title}: ${said.join("; ")}${best}`);
  }

  valueAt(ys, place) {
    // A curve that was full has fewer points than before.
    let at = place != null && place < ys.length ? place : ys.length - 1;
    // Where several curves are shown, each has values at places of its own.
    while (at > 0 && ys[at] == null) at -= 1;
    return at < 0 || ys[at] == null ? "nothing yet" : `${this.say(ys[at])} (${this.sayX(this.data[0][at], at)})`;
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) if (chart.drawn) chart.draw();
});
