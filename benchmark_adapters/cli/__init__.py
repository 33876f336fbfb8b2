"""The command dd-bench, one module a subcommand; torch is imported only when a subcommand needs it."""
