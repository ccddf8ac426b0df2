"""Measures the pooler beside a bare byte relay and an aiohttp reverse proxy.

Absolute figures say more about the machine than about the code, so everything runs side by side,
in turns, and only the ratios count.  Linux only: CPU time and memory come from /proc.  Run:
`python -m tests.long.bench`, or `python -m tests.long.bench --quick` for a look without judgement.
"""
