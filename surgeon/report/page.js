// The page is complete without this. It makes tables sortable, figures live, and one switch serve them all.
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const views = {};
const tip = document.getElementById("tip");

// Order of the languages, what is looked for, and the variants: `chosen` once the reader has chosen any.
const tools = document.querySelector(".tools");
const boxes = all("input[name=variant]");
let chosen = false;
const state = () => ({
  order: document.querySelector("input[name=order]:checked")?.value ?? "script",
  find: (document.getElementById("find")?.value ?? "").trim().toLowerCase(),
  checked: boxes.length ? boxes.filter((box) => box.checked).map((box) => box.value) : data.shown,
});

function setView(name) {
  const { order, find, checked } = state();
  const view = views[name];
  for (const [signal, value] of [["order", order], ["find", find]]) view.signal(signal, value);
  if (name === "perplexity" || chosen) view.signal("shown", checked);
  return view.runAsync();
}

function setTable(reorder) {
  const body = document.getElementById("by-language");
  if (!body) return;
  const { order, find, checked } = state();
  for (const row of body.rows) row.hidden = !row.dataset.search.includes(find);
  if (reorder) {
    body.append(...[...body.rows].sort((a, b) => a.dataset[order] - b.dataset[order]));
    all("th", body.parentElement).forEach((head) => head.removeAttribute("aria-sort"));
  }
  boxes.forEach((box, i) => {
    for (const row of body.parentElement.rows) row.cells[2 + i].hidden = chosen && !checked.includes(box.value);
  });
}

function apply(reorder) {
  for (const name of ["perplexity", "ratios"]) if (views[name]) setView(name);
  setTable(reorder);
}

if (tools) {
  tools.hidden = false;
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    chosen ||= event.target.name === "variant";
    apply(event.target.name === "order");
  });
}

// Figures become live when they come near the screen; until then, and on paper, their drawings stand.
async function enliven(figure) {
  const { spec, fluid } = data.figures[figure.dataset.figure];
  const spot = figure.querySelector(".live");
  figure.classList.add("is-live");
  if (spot.clientWidth < 500) spec.config.legend.columns = 1;
  const options = { actions: false, renderer: "svg", ast: true, logLevel: 1, tooltip: { theme: "custom" } };
  const { view } = await vegaEmbed(spot, spec, options);
  const drawn = spot.querySelector("svg");
  // To a screen reader it is one picture, as its still drawing is; the tables hold what its marks say.
  drawn.setAttribute("aria-hidden", "true");
  spot.setAttribute("role", "img");
  spot.setAttribute("aria-label", figure.getAttribute("aria-label"));
  views[figure.dataset.figure] = view;
  if (fluid) {
    const fit = () => {
      const slack = Math.floor(Math.min(spot.clientWidth, 672) - drawn.getBoundingClientRect().width);
      return view.width(Math.max(160, view.width() + slack)).runAsync();
    };
    await fit();
    addEventListener("resize", fit);
  }
  if (["perplexity", "ratios"].includes(figure.dataset.figure)) await setView(figure.dataset.figure);
  figure.dataset.ready = "yes";
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    enliven(target).catch((error) => { target.classList.remove("is-live"); console.error(error); });
  }
}, { rootMargin: "400px" });
for (const figure of all("figure[data-figure]")) if (data.figures[figure.dataset.figure]) near.observe(figure);

// Pointing at a scan says where one is, and the share there.
async function levels(scan) {
  const packed = Uint8Array.from(atob(scan.levels), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

for (const [name, scans] of Object.entries(data.scans)) {
  const rows = Object.values(scans)[0].rows;
  all(`figure[data-figure="${CSS.escape(name)}"] image`).forEach((image, i) => {
    const [region, scan] = Object.entries(scans)[i];
    image.addEventListener("pointermove", async (event) => {
      scan.cells ??= levels(scan);
      const cells = await scan.cells;
      const box = image.getBoundingClientRect();
      const part = (at, from, length, of) => Math.min(of - 1, Math.max(0, Math.floor((of * (at - from)) / length)));
      const column = part(event.clientX, box.left, box.width, scan.columns);
      const [layer, role] = rows[part(event.clientY, box.top, box.height, rows.length)];
      const row = scan.rows.findIndex((item) => item[0] === layer && item[1] === role);
      const first = column * scan.width;
      const where = scan.width > 1 ? `dimensions ${first} to ${first + scan.width - 1}` : `dimension ${first}`;
      const share = row < 0 ? "left out" : `${+(100 * (cells[row * scan.columns + column] / 255) ** 2).toPrecision(2)} % of its weights`;
      tip.textContent = `${region}: layer ${layer}, ${role}, ${where}: ${share}`;
      tip.hidden = false;
      tip.style.left = `${Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.pageY + 18}px`;
    });
    image.addEventListener("pointerleave", () => { tip.hidden = true; });
  });
}

// Sortable tables: every column head of a table marked `data-sortable` becomes a button.
for (const table of all("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim().replace("• ", "") : Number(cell.dataset.value);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = body.rows.length > 0 && typeof key(body.rows[0], column) === "number";
      const before = head.getAttribute("aria-sort");
      const ascending = before ? before === "descending" : !numbers;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => compare(key(a, column), key(b, column)));
      body.append(...(ascending ? rows : rows.reverse()));
    });
  });
}

// On paper nothing can be opened.
addEventListener("beforeprint", () => all("details").forEach((item) => { item.open = true; }));
