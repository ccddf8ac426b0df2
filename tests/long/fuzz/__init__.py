"""Entry points that feed one parser each with bytes; see `python -m tests.long.fuzz --help`."""
