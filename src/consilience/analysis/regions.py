"""The verdict on regions of a joint posterior that should hold the truth as often as they claim."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.analysis.bands import coverage_band, coverage_pvalue, histogram_band, uniform_pvalue
from consilience.analysis.base import AbstractResult
from consilience.analysis.calibration import Bands
from consilience.typing import FloatArray, StringArray

if TYPE_CHECKING:
    from consilience.plots.style import Figure

__all__ = ["AbstractRegions", "region_verdict"]


@dataclass(frozen=True)
class AbstractRegions(AbstractResult):
    """Coverage of regions in the joint posterior of C cells on N rows; that of content l holds the truth if u <= l.

    ``coverage``, ``low`` and ``high`` have shape (K,), of the levels in ``bands``; ``inside_band`` says whether all of
    them lie in the simultaneous band, ``pvalue`` is that of the same test and ``uniform_pvalue`` that of uniformity of
    u (N,).
    """

    what: ClassVar[str]  # u in words

    cells: tuple[str, ...]
    given: tuple[str, ...]
    bands: Bands
    ids: StringArray
    u: FloatArray
    coverage: FloatArray
    low: FloatArray
    high: FloatArray
    inside_band: bool
    pvalue: float
    uniform_pvalue: float

    def columns(self) -> dict[str, float]:
        """Coverage with its band at each level."""
        found = {}
        for k, level in enumerate(self.bands.levels):
            found |= {f"coverage{100 * level:g}": self.coverage[k]}
            found |= {f"low{100 * level:g}": self.low[k], f"high{100 * level:g}": self.high[k]}
        return found

    def figure(self) -> "Figure":
        """Coverage minus nominal, and the histogram of u, with their bands."""
        from consilience import plots

        edges = histogram_band(len(self.u), self.bands.bins, self.bands.confidence)
        band = plots.CoverageBand(np.array(self.bands.levels), self.low, self.high, *edges, self.bands.bins)
        return plots.joint_coverage(self.u, band, self.bands.confidence, self.what)


def region_verdict(u: FloatArray, bands: Bands) -> dict[str, Any]:
    """The fields of :class:`AbstractRegions` that follow from u (N,)."""
    counts = tuple(int((u <= level).sum()) for level in bands.levels)
    coverage = np.array(counts) / len(u)
    low, high = (np.array(edge) for edge in coverage_band(len(u), bands.levels, bands.confidence))
    return {
        "u": u,
        "coverage": coverage,
        "low": low,
        "high": high,
        "inside_band": bool(((coverage >= low - 1e-12) & (coverage <= high + 1e-12)).all()),
        "pvalue": coverage_pvalue(counts, len(u), bands.levels),
        "uniform_pvalue": uniform_pvalue(u[:, None]),
    }
