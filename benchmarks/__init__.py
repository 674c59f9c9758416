"""One script per performance claim: ``python -m benchmarks.NAME [--quick] [--seed N] --out DIR``."""
