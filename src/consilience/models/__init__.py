"""The wiring: one family per file."""
