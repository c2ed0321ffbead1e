"""What the page does: state to session and back, without widgets; one file for each of `ui/`."""
