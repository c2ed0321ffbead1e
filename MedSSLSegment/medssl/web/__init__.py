"""The browser workstation: `medssl.scene` on trame-slicer's views and segment editor. `app` puts it together."""
