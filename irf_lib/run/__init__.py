"""Runs: presets, results folders with their provenance, the execution of notebooks, one's own parts."""
