// Brings a step that somebody opens into sight: the last ones lie below the edge of a small screen. Whoever has gone on
// meanwhile, and presses a button or turns the wheel, must not have the page moved under the mouse.
document.addEventListener("click", ({ target }) => {
  const title = target instanceof Element ? target.closest(".v-expansion-panel-title") : null;
  const panel = title?.closest(".v-expansion-panel");
  if (!panel) return;
  const OPENED_MS = 350;
  const timer = setTimeout(() => {
    if (panel.classList.contains("v-expansion-panel--active")) panel.scrollIntoView({ block: "nearest" });
  }, OPENED_MS);
  for (const goesOn of ["pointerdown", "wheel"]) {
    document.addEventListener(goesOn, () => clearTimeout(timer), { capture: true, once: true });
  }
});
