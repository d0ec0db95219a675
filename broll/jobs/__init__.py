"""Keep, order, run, report: the jobs. Knows SQL; knows no torch, no HTTP."""
