"""The self-contained page and the model card."""

from consilience.report.card import card
from consilience.report.page import report

__all__ = ["card", "report"]
