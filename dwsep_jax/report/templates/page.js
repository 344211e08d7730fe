const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
// A page from disk may not have a storage; then the choice lasts as long as the page.
const storage = (use) => { try { return use(localStorage); } catch { return null; } };
const stored = storage((s) => s.getItem("theme"));
if (stored === "dark" || stored === "light") root.dataset.theme = stored;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  storage((s) => s.setItem("theme", root.dataset.theme));
  label();
});
dark.addEventListener("change", label);
label();

// As SVG, the charts take the colours of the theme from the style sheet.
const options = { actions: false, renderer: "svg", config, mode: "vega-lite",
  tooltip: { disableDefaultStyle: true, sanitize: escapeText } };
function escapeText(value) {
  return String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;");
}
async function draw(element) {
  const spec = JSON.parse(element.querySelector("script").textContent);
  const place = document.createElement("div");
  place.style.width = "100%";
  element.append(place);
  await vegaEmbed(place, spec, options);
}
(async () => {
  for (const element of document.querySelectorAll(".chart")) await draw(element);
  root.dataset.drawn = "true";
})();
