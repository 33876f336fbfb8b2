"""The engine: configuration, condensation, pruning and evaluation of one set; no terminal, no run folder."""
