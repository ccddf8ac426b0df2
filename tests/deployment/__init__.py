"""The README's deployment, each snippet run as it stands there, with the programs of Debian."""
