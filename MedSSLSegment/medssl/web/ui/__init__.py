"""Widgets and the state behind them, without logic; `logic/` has a file for each."""
