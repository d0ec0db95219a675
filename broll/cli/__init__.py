"""The command line: it asks, shows and reports; the work is done below."""
