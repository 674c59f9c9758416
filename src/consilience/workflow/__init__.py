"""Train, measure, record."""
