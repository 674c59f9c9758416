"""Pictures of plain arrays; the only importer of matplotlib."""
