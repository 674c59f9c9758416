"""Data with known truth: functions (n, seed, …) -> Observations."""
