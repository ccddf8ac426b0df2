"""Everything that proves the pooler; tests/README.md is its index."""
