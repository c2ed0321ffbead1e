// Turns a wheel over a slice view into jumps of whole slices. Notches that come while jumps are under way are added up
// and become the next jump, which leaves when a picture of those before is on the page: however slow the machine
// draws, the view is never more than a picture or two behind the wheel.
(() => {
  const AT_ONCE = 2; // while the page shows one picture, the server draws the next
  const LATEST_MS = 250; // for a picture; then it is not waited for any more
  const PAUSE_MS = 300; // after it, a turn begins anew
  const NOTCH_PX = 100;
  const NOTCH_LINES = 3;
  const views = new Map(); // by name

  const viewUnder = (target) => {
    const area = target instanceof Element ? target.closest(".remote-controlled-area") : null;
    const name = area?.parentElement.querySelector("[data-slice-view]")?.dataset.sliceView;
    if (!name) return null;
    if (!views.has(name)) views.set(name, { name, rest: 0, turnedAt: -Infinity, notches: 0, jumps: 0 });
    return Object.assign(views.get(name), { area });
  };

  const notchesOf = ({ deltaY, deltaMode }) => {
    if (deltaMode === WheelEvent.DOM_DELTA_PAGE) return deltaY;
    return deltaY / (deltaMode === WheelEvent.DOM_DELTA_LINE ? NOTCH_LINES : NOTCH_PX);
  };

  // A touch pad turns in small parts, which add up; a turn begins with a whole slice, however small its first part.
  const wholeNotches = (view, event) => {
    const part = notchesOf(event);
    const now = performance.now();
    const isNew = now - view.turnedAt > PAUSE_MS || part * view.rest < 0;
    view.turnedAt = now;
    view.rest = isNew ? Math.sign(part) * Math.max(1, Math.abs(part)) : view.rest + part;
    const whole = Math.trunc(view.rest);
    view.rest -= whole;
    return whole;
  };

  const picture = ({ area }) =>
    new Promise((resolve) => {
      const done = () => {
        area.removeEventListener("load", done, true);
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(done, LATEST_MS);
      area.addEventListener("load", done, true);
    });

  const jump = async (view) => {
    const slices = -view.notches; // turned towards the person is towards lower slices
    view.notches = 0;
    view.jumps += 1;
    try {
      const hasMoved = await window.trame.trigger("medssl_scroll", [view.name, slices]);
      if (hasMoved) await picture(view);
    } finally {
      view.jumps -= 1;
    }
    go(view);
  };

  const go = (view) => {
    while (view.notches && view.jumps < AT_ONCE) jump(view);
  };

  document.addEventListener(
    "wheel",
    (event) => {
      const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.buttons);
      const view = isPlain && event.deltaY ? viewUnder(event.target) : null;
      if (!view) return;
      event.preventDefault();
      event.stopPropagation();
      view.notches += wholeNotches(view, event);
      go(view);
    },
    { capture: true, passive: false },
  );
})();
