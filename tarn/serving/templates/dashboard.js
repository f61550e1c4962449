// Draws every chart in the reader's colours and at the width there is; again when either changes.
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawings = [...document.querySelectorAll(".drawing")];

function config(width) {
  const theme = themes[dark.matches ? "dark" : "light"];
  const legend = { ...theme.legend, columns: Math.max(1, Math.floor(width / 130)) };
  return { ...theme, legend };
}

async function draw(place) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  const options = { config: config(place.clientWidth), renderer: "svg", actions: false };
  try {
    place.view?.finalize();
    place.view = (await vegaEmbed(place, spec, options)).view;
  } catch (error) {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    place.classList.add("broken");
    console.error(error);
  }
}

function drawAll() {
  return Promise.all(drawings.map(draw)).then(() => { document.body.dataset.drawn = "true"; });
}

let width = innerWidth;
let timer;
addEventListener("resize", () => {
  // Print sets a width too, but has no time to wait for drawings.
  if (innerWidth === width || matchMedia("print").matches) return;
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(drawAll, 150);
});
dark.addEventListener("change", drawAll);
drawAll();
