"""One experiment per file: a TOML with its settings and a module with ``run``; :mod:`.runner` runs and records them."""
