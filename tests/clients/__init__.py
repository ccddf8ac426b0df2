"""Real clients through the real pooler, over sockets, to an upstream that nobody here wrote."""
