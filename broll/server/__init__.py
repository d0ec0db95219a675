"""HTTP in front of the jobs. Knows no engine, no torch."""
