"""Pictures of plain arrays and draws; the only importer of matplotlib. Every function returns a ``Figure``."""

from consilience.plots.attribution import heat_map, waterfall
from consilience.plots.checks import CoverageBand, calibration, joint_coverage, predicted_vs_true
from consilience.plots.corner import corner
from consilience.plots.curves import Profile, Trend, curve_families, history, methods, profiles, trends
from consilience.plots.images import compared_images, image_grid
from consilience.plots.maps import latent_map, outlier_map
from consilience.plots.readings import Readings, readings
from consilience.plots.spectrum import spectrum
from consilience.plots.style import Figure, Labels, png, svg, with_unit
from consilience.plots.time import Track, strips, tracks

__all__ = [
    "CoverageBand",
    "Figure",
    "Labels",
    "Profile",
    "Readings",
    "Track",
    "Trend",
    "calibration",
    "compared_images",
    "corner",
    "curve_families",
    "heat_map",
    "history",
    "image_grid",
    "joint_coverage",
    "latent_map",
    "methods",
    "outlier_map",
    "png",
    "predicted_vs_true",
    "profiles",
    "readings",
    "spectrum",
    "strips",
    "svg",
    "tracks",
    "trends",
    "waterfall",
    "with_unit",
]
