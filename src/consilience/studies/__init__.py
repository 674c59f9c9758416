"""One TOML per experiment, and the runner."""
