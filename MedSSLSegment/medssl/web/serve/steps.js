// Brings a step that somebody opens into sight: the last ones lie below the edge of a small screen.
document.addEventListener("click", ({ target }) => {
  const title = target instanceof Element ? target.closest(".v-expansion-panel-title") : null;
  const panel = title?.closest(".v-expansion-panel");
  if (!panel) return;
  const OPENED_MS = 350;
  setTimeout(() => {
    if (panel.classList.contains("v-expansion-panel--active")) panel.scrollIntoView({ block: "nearest" });
  }, OPENED_MS);
});
