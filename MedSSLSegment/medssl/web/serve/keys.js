// Sends the keys that the workstation knows to the server, unless somebody is typing or a dialog is open.
(() => {
  const isTyping = (element) =>
    element.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(element.tagName);
  const isInDialog = () => document.querySelector(":is(.v-dialog, .v-menu, .medssl-loading).v-overlay--active") !== null;

  document.addEventListener(
    "keydown",
    (event) => {
      const known = window.trame?.state?.get("medssl_keys") ?? [];
      const name = event.key === " " ? "Space" : event.key.length === 1 ? event.key.toUpperCase() : event.key;
      const key = (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + name;
      if (event.repeat || event.altKey || isTyping(event.target) || isInDialog() || !known.includes(key)) {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      window.trame.trigger("medssl_key", [key]);
    },
    true,
  );
})();
