"""Runs: from a configuration to a scored record, one folder a run, resumable at any moment."""
