"""The benchmark: what runs, scores and compares the methods of dd_plugins."""
