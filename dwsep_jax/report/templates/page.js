const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
// A page from disk may not have a storage; then the choice lasts as long as the page.
const storage = (use) => { try { return use(localStorage); } catch { return null; } };
root.dataset.theme = storage((s) => s.getItem("theme")) ?? "";
document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  storage((s) => s.setItem("theme", root.dataset.theme));
});

// As SVG, the charts take the colors of the theme from the style sheet.
const options = { actions: false, renderer: "svg", config, mode: "vega-lite",
  tooltip: { disableDefaultStyle: true } };
(async () => {
  for (const chart of document.querySelectorAll(".chart")) {
    await vegaEmbed(chart, JSON.parse(chart.nextElementSibling.textContent), options);
  }
  root.dataset.drawn = "true";
})();
