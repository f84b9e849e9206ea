const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const themed = (layout) => {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const ink = colour("--ink"), line = colour("--line"), axes = {};
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name)))
    axes[key] = { ...layout[key], gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const marks = (layout.annotations || []).map((mark) => ({ ...mark, font: { size: 13, ...mark.font, color: ink } }));
  return {
    ...layout, ...axes, annotations: marks, template: undefined, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif" }, margin: { l: 8, r: 12, t: 32, b: 48 }, autosize: true,
    legend: { orientation: "h", yanchor: "top", y: -0.18, ...layout.legend }, hoverlabel: { align: "left" },
  };
};
for (const place of document.querySelectorAll("[data-plot]")) {
  const figure = JSON.parse(document.getElementById("figure-" + place.dataset.plot).textContent);
  const draw = () => Plotly.react(place, figure.data, themed(figure.layout), { responsive: true, displayModeBar: false });
  draw();
  dark.addEventListener("change", draw);
}
for (const slider of document.querySelectorAll(".pair input[type=range]"))
  slider.addEventListener("input", () => slider.parentElement.querySelector(".stage").style.setProperty("--cut", slider.value + "%"));
for (const button of document.querySelectorAll("[data-difference]"))
  button.addEventListener("click", () => {
    const on = button.closest(".pair").querySelector(".stage").classList.toggle("differs");
    button.setAttribute("aria-pressed", on);
  });
for (const button of document.querySelectorAll("[data-sort]"))
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0], column = +button.dataset.sort;
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value, rows = [...body.rows];
    const empty = rows.filter((row) => value(row) === ""), full = rows.filter((row) => value(row) !== "");
    const numbers = full.every((row) => !isNaN(value(row)));
    const order = numbers ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b));
    full.sort((a, b) => (falling ? -order(a, b) : order(a, b)));
    body.append(...full, ...empty);
  });
for (const button of document.querySelectorAll("[data-csv]"))
  button.addEventListener("click", () => {
    const table = data[button.dataset.csv];
    const cell = (value) => { const text = value === null ? "" : String(value); return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text; };
    const text = [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv" }));
    link.download = table.name + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
for (const button of document.querySelectorAll("[data-png]"))
  button.addEventListener("click", () => {
    const place = document.querySelector(`[data-plot="${button.dataset.png}"]`);
    Plotly.downloadImage(place, { format: "png", scale: 2, filename: button.dataset.png, width: place.clientWidth, height: place.clientHeight });
  });
