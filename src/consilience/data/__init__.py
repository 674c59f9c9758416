"""What was seen, and what came out: schemas, tables of modalities, draws, scaling, masking, batching."""
