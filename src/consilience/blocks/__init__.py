"""The mathematics that models are wired from: tensors and modalities, never models."""
