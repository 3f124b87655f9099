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

// The figures of languages heed the switch; all others are what they are.
const isSwitched = (name) => (data.figures[name].spec.params ?? []).some((param) => param.name === "order");

function setView(name) {
  const { order, find, checked } = state();
  const view = views[name];
  for (const [signal, value] of [["order", order], ["find", find]]) view.signal(signal, value);
  if (name !== "ratios" || chosen) view.signal("shown", checked);
  return view.runAsync();
}

function setTable(reorder) {
  const body = document.getElementById("by-language");
  if (!body) return;
  const { order, find, checked } = state();
  for (const row of body.rows) row.hidden = !row.dataset.search.includes(find);
  document.getElementById("none").hidden = [...body.rows].some((row) => !row.hidden);
  if (reorder) {
    body.append(...[...body.rows].sort((a, b) => a.dataset[order] - b.dataset[order]));
    all("th", body.parentElement).forEach((head) => head.removeAttribute("aria-sort"));
  }
  boxes.forEach((box, i) => {
    for (const row of body.parentElement.rows) row.cells[2 + i].hidden = chosen && !checked.includes(box.value);
  });
}

function apply(reorder) {
  for (const name in views) if (isSwitched(name)) setView(name);
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
  if (spot.scrollWidth > spot.clientWidth) spot.tabIndex = 0; // so that a keyboard can scroll it
  if (fluid) {
    const fit = () => {
      const slack = Math.floor(Math.min(spot.clientWidth, 672) - drawn.getBoundingClientRect().width);
      return view.width(Math.max(160, view.width() + slack)).runAsync();
    };
    await fit();
    addEventListener("resize", fit);
  }
  if (isSwitched(figure.dataset.figure)) await setView(figure.dataset.figure);
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

// Pointing at a scan says where one is, and the share there; a click lists what is in that dimension.
async function levels(scan) {
  const packed = Uint8Array.from(atob(scan.levels), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const cellsOf = (scan) => (scan.cells ??= levels(scan));
const shareOf = (level) => (level / 255) ** 2;
const percent = (share) => `${+(100 * share).toPrecision(2)} %`;
const named = (scan, column) => {
  const first = column * scan.width;
  return scan.width > 1 ? `dimensions ${first} to ${first + scan.width - 1}` : `dimension ${first}`;
};

// Drawn again for the pixels that there are: each shows the fullest of the columns that it covers.
async function paint(image, scan, full) {
  const cells = await cellsOf(scan);
  const wide = Math.max(1, Math.round(image.getBoundingClientRect().width * devicePixelRatio));
  const canvas = Object.assign(document.createElement("canvas"), { width: wide, height: scan.rows.length });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(wide, scan.rows.length);
  for (let x = 0; x < wide; x++) {
    const from = Math.floor((x * scan.columns) / wide);
    const to = Math.max(from + 1, Math.ceil(((x + 1) * scan.columns) / wide));
    for (let y = 0; y < scan.rows.length; y++) {
      let most = 0;
      for (let at = from; at < to; at++) most = Math.max(most, cells[y * scan.columns + at]);
      const light = data.light.colours[Math.round(255 * Math.min(shareOf(most) / full, 1) ** data.light.exponent)];
      picture.data.set([...light, 255], 4 * (y * wide + x));
    }
  }
  context.putImageData(picture, 0, 0);
  image.setAttribute("href", canvas.toDataURL());
  image.removeAttribute("xlink:href");
}

const others = Object.values(data.scans).reduce((found, scans) => ({ ...found, ...scans }), {});
async function listed(region, scan, column) {
  const cells = await cellsOf(scan);
  const here = scan.rows.map(([layer, role], y) => [shareOf(cells[y * scan.columns + column]), layer, role]);
  here.sort((a, b) => b[0] - a[0]);
  const mean = async (other) => {
    const found = await cellsOf(other);
    return other.rows.reduce((sum, _, y) => sum + shareOf(found[y * other.columns + column]), 0) / other.rows.length;
  };
  const lines = here.slice(0, 12).filter(([share]) => share > 0);
  const text = lines.map(([share, layer, role]) => `layer ${layer} ${role} ${percent(share)}`).join("; ") || "none";
  const beside = [];
  for (const [name, other] of Object.entries(others)) {
    if (other.columns === scan.columns) beside.push(`${name} ${percent(await mean(other))}`);
  }
  return [`${region}, ${named(scan, column)}. Largest shares of its weights: ${text}.`, `Mean over all rows: ${beside.join("; ")}.`];
}

for (const [name, scans] of Object.entries(data.scans)) {
  const figure = document.querySelector(`figure[data-figure="${CSS.escape(name)}"]`);
  const image = figure?.querySelector("image");
  if (!image) continue;
  const [region, scan] = Object.entries(scans)[0];
  const part = (at, from, length, of) => Math.min(of - 1, Math.max(0, Math.floor((of * (at - from)) / length)));
  const place = (event) => {
    const box = image.getBoundingClientRect();
    return [part(event.clientX, box.left, box.width, scan.columns), part(event.clientY, box.top, box.height, scan.rows.length)];
  };
  const lines = [0, 1].map(() => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "cross");
    image.after(line);
    return line;
  });
  const cross = (column, row) => {
    const [left, top, width, height] = ["x", "y", "width", "height"].map((key) => Number(image.getAttribute(key) ?? 0));
    const x = left + ((column + 0.5) / scan.columns) * width;
    const y = top + ((row + 0.5) / scan.rows.length) * height;
    [[x, top, x, top + height], [left, y, left + width, y]].forEach((ends, i) => {
      ["x1", "y1", "x2", "y2"].forEach((key, at) => lines[i].setAttribute(key, ends[at]));
      lines[i].style.display = "";
    });
  };
  const away = () => { tip.hidden = true; lines.forEach((line) => { line.style.display = "none"; }); };
  const repaint = () => { if (image.getBoundingClientRect().width) paint(image, scan, data.full[name]); };
  new ResizeObserver(repaint).observe(figure);
  image.addEventListener("pointermove", async (event) => {
    const [column, row] = place(event);
    const [layer, role] = scan.rows[row];
    const share = shareOf((await cellsOf(scan))[row * scan.columns + column]);
    cross(column, row);
    tip.textContent = `${region}: layer ${layer}, ${role}, ${named(scan, column)}: ${percent(share)} of its weights`;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.pageY + 18}px`;
  });
  image.addEventListener("pointerleave", away);
  image.addEventListener("click", async (event) => {
    const spot = figure.querySelector(".picked") ?? Object.assign(document.createElement("div"), { className: "picked" });
    spot.setAttribute("role", "status");
    spot.replaceChildren(...(await listed(region, scan, place(event)[0])).map((text) => Object.assign(document.createElement("p"), { textContent: text })));
    figure.querySelector("figcaption").before(spot);
  });
  away();
}

// Every figure can be taken along: as it is drawn, and as the rows behind it.
const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
const HIDDEN = /^(rank_|group_|search$|step$|strong$|label$|broken$|ratio$|said$|everything$|guess)/;
async function rowsOf(name) {
  if (data.scans[name]) {
    const rows = [];
    for (const [region, scan] of Object.entries(data.scans[name])) {
      const cells = await cellsOf(scan);
      scan.rows.forEach(([layer, role], y) => {
        for (let x = 0; x < scan.columns; x++) {
          if (cells[y * scan.columns + x]) rows.push({ region, layer, role, dimension: x * scan.width, share: +shareOf(cells[y * scan.columns + x]).toPrecision(3) });
        }
      });
    }
    return rows;
  }
  const rows = data.figures[name].spec.data?.values ?? [];
  return rows.map((row) => Object.fromEntries(Object.entries(row).filter(([key]) => !HIDDEN.test(key))));
}
for (const button of all("[data-take]")) {
  button.parentElement.hidden = false;
  button.addEventListener("click", async () => {
    const figure = button.closest("figure");
    const [name, kind] = [figure.dataset.figure, button.dataset.take];
    let text;
    if (kind === "csv") {
      const rows = await rowsOf(name);
      const heads = [...new Set(rows.flatMap(Object.keys))];
      text = [heads, ...rows.map((row) => heads.map((head) => row[head]))].map((row) => row.map(quoted).join(",")).join("\n");
    } else {
      const style = getComputedStyle(document.documentElement);
      text = figure.querySelector(".still svg").outerHTML.replace(/var\((--[\w-]+)\)/g, (_, key) => style.getPropertyValue(key).trim());
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "image/svg+xml" }));
    link.download = `${name}.${kind}`;
    link.click();
    URL.revokeObjectURL(link.href);
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

// On paper nothing can be opened: the one table that belongs there is, and every other fold is left out.
addEventListener("beforeprint", () => all("details").forEach((item) => { item.open = "print" in item.dataset; }));
