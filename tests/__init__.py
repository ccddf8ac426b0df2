"""Everything that proves the pooler; `tests.bench` measures it."""
