"""Questions asked of any fitted model; each returns a frozen Result."""
