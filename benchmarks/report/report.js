// What report.html does beyond what it shows without scripts: sorting, fewer columns, and sliders over pictures.
"use strict";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A button before a table that shows its extra columns; at first they are hidden. */
function addToggle(table) {
  if (!table.querySelector(".extra")) return;
  const button = make("button", { type: "button" });
  const show = (all) => {
    table.classList.toggle("compact", !all);
    button.setAttribute("aria-pressed", String(all));
  };
  button.textContent = "Show all columns";
  button.addEventListener("click", () => show(table.classList.contains("compact")));
  show(false);
  table.closest(".scroll").before(make("div", { className: "tools" }, button));
}

/** A button in each header that sorts by its column, first the better end up, then the other way round. */
function addSorting(table) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headers.forEach((header, index) => {
    const first = header.dataset.first || "ascending";
    const button = make("button", { type: "button" });
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const other = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      body.append(...[...body.rows].sort((a, b) => compareRows(a, b, index, order)));
    });
  });
}

/** Numbers by size, else texts by the alphabet; rows without a value come last in either order. */
function compareRows(a, b, index, order) {
  const [left, right] = [a, b].map((row) => row.cells[index]?.dataset.value);
  if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
  const numbers = [Number(left), Number(right)];
  const isText = index === 0 || numbers.some(Number.isNaN);
  const difference = isText ? left.localeCompare(right, "en", { numeric: true }) : numbers[0] - numbers[1];
  return order === "ascending" ? difference : -difference;
}

/** Two pictures over each other with a divider, for every photograph; what is compared is chosen once for all. */
function addSliders(section) {
  const photos = [...section.querySelectorAll(".photo")];
  const pictures = [...section.querySelectorAll(".tile:not(.map)")];
  const titles = new Map(pictures.map(({ dataset }) => [dataset.name, dataset.title]));
  const chooser = (label, chosen) => {
    const select = make("select", {}, ...[...titles].map(([name, title]) => new Option(title, name)));
    select.value = chosen;
    return [make("label", {}, `${label} `, select), select];
  };
  const [leftLabel, left] = chooser("Left", section.dataset.left);
  const [rightLabel, right] = chooser("Right", section.dataset.right);
  const kinds = { "": "colours", truth: "difference to the truth", best: `difference to ${section.dataset.best}` };
  const radios = Object.entries(kinds).map(([value, text]) => {
    const radio = make("input", { type: "radio", name: "shown", value, checked: value === "" });
    return [make("label", {}, radio, ` ${text}`), radio];
  });
  const fieldset = make("fieldset", {}, make("legend", { textContent: "Show" }), ...radios.map(([label]) => label));
  const stages = photos.map((photo) => makeStage(photo, section.classList.contains("hero")));
  const update = () => {
    const against = radios.find(([, radio]) => radio.checked)[1].value;
    stages.forEach((stage) => stage.show(left.value, right.value, against));
  };
  [left, right, ...radios.map(([, radio]) => radio)].forEach((each) => each.addEventListener("change", update));
  const tools = make("div", { className: "tools" }, leftLabel, rightLabel);
  if (section.querySelector(".tile.map")) tools.append(fieldset);
  section.prepend(tools);
  section.classList.add("sliders");
  update();
}

/** The stage of a photograph; `isWide`: as large as there is room for. */
function makeStage(photo, isWide) {
  const { width, height, name } = photo.dataset;
  const [left, right] = ["left", "right"].map((className) => make("img", { className, alt: "" }));
  const [leftName, rightName] = ["left", "right"].map((side) => make("span", { className: `name of-${side}` }));
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", `${name}: how much the left picture covers`);
  const stage = make("div", { className: "stage" });
  stage.append(right, left, make("div", { className: "divider" }), leftName, rightName, slider);
  // Twice their pixels, where there is room: large enough to judge colour. A high one still fits the screen.
  stage.style.width = isWide ? `min(100%, ${(26 * width) / height}rem)` : `${2 * width}px`;
  stage.style.aspectRatio = `${width} / ${height}`;
  const move = () => {
    stage.style.setProperty("--at", `${slider.value}%`);
    const rest = 100 - slider.value;
    slider.setAttribute("aria-valuetext", `${slider.value} % ${leftName.textContent}, ${rest} % ${rightName.textContent}`);
  };
  slider.addEventListener("input", move);
  photo.querySelector(".strip").before(stage);
  const put = (image, label, wanted, against) => {
    const tiles = [...photo.querySelectorAll(".tile")].filter((tile) => tile.dataset.name === wanted);
    // Grey and truth have no maps: they stay what they are.
    const tile = tiles.find((each) => each.dataset.against === against) || tiles[0];
    image.hidden = !tile;
    if (tile) image.src = tile.querySelector("img").src;
    label.textContent = tile ? tile.dataset.title : `${wanted}: no answer`;
  };
  return {
    show(leftWanted, rightWanted, against) {
      put(left, leftName, leftWanted, against);
      put(right, rightName, rightWanted, against);
      move();
    },
  };
}

document.querySelectorAll("table.results").forEach((table) => {
  addToggle(table);
  addSorting(table);
});
document.querySelectorAll(".compare").forEach(addSliders);
