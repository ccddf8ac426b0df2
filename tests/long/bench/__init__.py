"""Measures what users do, on the pooler and beside it on what it could be at best.

`python -m tests.long.bench` runs the pooler, an aiohttp reverse proxy, a bare Trio byte relay and a
minimal Trio + h11 proxy in turns, and only ratios to the aiohttp proxy count: absolute figures say
more about the machine.  `--quick` takes about a minute; `--against DIRECTORY` measures the
`pooler.py` there in the same run.  Linux only, with `taskset` and `strace`.
"""
