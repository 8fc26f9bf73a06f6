// Live parts of the pages: streams of server-sent events, charts, copying, and a key that leads to the search field.

const MOST_ROWS = 200;

function follow(address, handlers) {
  const source = new EventSource(address);
  for (const [name, handler] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
  }
  window.addEventListener("pagehide", () => source.close());
  return source;
}

// --- numbers that follow the newest status -------------------------------------------------------------------------

const shown = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));

function showValues(point) {
  for (const element of document.querySelectorAll("[data-value]")) {
    element.textContent = shown(point[element.dataset.value]);
  }
}

// --- charts --------------------------------------------------------------------------------------------------------

const KEPT_POINTS = 900;
const SERIES_COLOURS = ["--taste", "--moment", "--promotion", "--ranker"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function timeOfDay(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}

function chart(element, names, labels, columns) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const tall = names.length > 1 ? 160 : 186; // a legend needs the difference
  const plot = new window.uPlot(
    {
      width: element.clientWidth,
      height: tall,
      cursor: { y: false, drag: { x: false, y: false } },
      axes: [{ ...axis, space: 70, values: (_, splits) => splits.map(timeOfDay) }, { ...axis, size: 46 }],
      legend: { show: names.length > 1, live: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
      series: [
        {},
        ...names.map((name, at) => ({ label: labels[at], stroke: colour(SERIES_COLOURS[at]), width: 1.6, spanGaps: true, points: { show: false } })),
      ],
    },
    [columns.time_s, ...names.map((name) => columns[name])],
    element,
  );
  new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: tall })).observe(element);
  return (all) => plot.setData([all.time_s, ...names.map((name) => all[name])]);
}

async function showCharts(holder) {
  const answer = await fetch(holder.dataset.columns);
  if (!answer.ok) return;
  const columns = await answer.json();
  const draw = [...holder.querySelectorAll(".chart")].map((element) =>
    chart(element, element.dataset.series.split(" "), element.dataset.labels.split("|"), columns),
  );
  document.addEventListener("perseid:point", ({ detail }) => {
    for (const [name, column] of Object.entries(columns)) {
      column.push(detail[name] ?? null);
      if (column.length > KEPT_POINTS) column.shift();
    }
    for (const each of draw) each(columns);
  });
}

// --- rows that arrive ----------------------------------------------------------------------------------------------

function showRows(body) {
  let waiting = [];
  let left = 0;
  const paused = document.querySelector("[data-pause]");
  const said = document.querySelector("[data-said]");
  const isPaused = () => paused !== null && paused.getAttribute("aria-pressed") === "true";

  const put = () => {
    if (waiting.length === 0) return;
    for (const html of waiting) {
      body.insertAdjacentHTML("afterbegin", html);
      body.firstElementChild.classList.add("arrived");
      window.htmx?.process(body.firstElementChild);
    }
    waiting = [];
    while (body.children.length > MOST_ROWS) body.lastElementChild.remove();
  };
  follow(body.dataset.rows, {
    rows: (found) => {
      waiting = [...waiting, ...found.rows].slice(-MOST_ROWS);
      left += found.left_out;
      if (!isPaused()) put();
      if (said !== null) {
        const held = isPaused() && waiting.length > 0 ? `${waiting.length} wait. ` : "";
        said.textContent = held + (left > 0 ? `More came than anybody reads: ${left} left out.` : "");
      }
    },
  });
  paused?.addEventListener("click", () => {
    paused.setAttribute("aria-pressed", String(!isPaused()));
    paused.textContent = isPaused() ? "Go on" : "Pause";
    if (!isPaused()) put();
  });
}

// A part of a page that is asked for anew when something has happened.
function refreshOn(element) {
  follow(element.dataset.refresh, { changed: () => element.dispatchEvent(new CustomEvent("perseid:changed")) });
}

function start() {
  document.querySelector(".screens [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
  const pulse = document.querySelector("[data-stream]");
  if (pulse !== null) {
    follow(pulse.dataset.stream, {
      point: (point) => {
        showValues(point);
        document.dispatchEvent(new CustomEvent("perseid:point", { detail: point }));
      },
    });
  }
  for (const holder of document.querySelectorAll("[data-columns]")) showCharts(holder);
  for (const body of document.querySelectorAll("[data-rows]")) showRows(body);
  for (const element of document.querySelectorAll("[data-refresh]")) refreshOn(element);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (button === null) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select") !== null;
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = document.querySelector("main input:not([type=hidden]):not([type=checkbox])");
    if (field !== null) {
      event.preventDefault();
      field.focus();
    }
  });
}

start();
