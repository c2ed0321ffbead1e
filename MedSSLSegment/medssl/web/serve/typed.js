// A button that is pressed, or a key that ends typing, must not overtake what was typed: as long as a message is under way
// the page keeps later values back, but not what a button says.
(() => {
  const LOOK_MS = 10;
  const LOOKS = 200; // then the button is not held back any longer
  const { trame } = window;
  const trigger = trame.trigger;

  const pause = () => new Promise((resolve) => setTimeout(resolve, LOOK_MS));

  trame.trigger = async (...said) => {
    for (let look = 0; trame.state.dirtyKeys.size && look < LOOKS; look += 1) {
      await trame.state.flush();
      if (trame.state.dirtyKeys.size) await pause();
    }
    return trigger(...said);
  };
})();
