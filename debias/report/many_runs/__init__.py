"""The report over many runs: tables, plots and tests."""
