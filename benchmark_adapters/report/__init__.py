"""What a person reads: statistics, tables and pictures."""
