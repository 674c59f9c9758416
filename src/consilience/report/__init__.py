"""The self-contained page and the model card."""
