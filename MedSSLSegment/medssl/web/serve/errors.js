// A browser calls it an error when sizes change while it tells who watches them, and tells the rest one picture later.
// Nothing is lost, so it is no error to report.
window.addEventListener(
  "error",
  (event) => {
    if (event.message?.startsWith("ResizeObserver loop")) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  },
  true,
);
