"""Files to and from tables: one format, one file."""
