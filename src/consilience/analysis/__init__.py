"""Questions asked of any fitted model; each returns a frozen result with ``table``, ``figure`` and ``save``."""

from consilience.analysis.attribution import Attribution, attribution
from consilience.analysis.base import AbstractResult
from consilience.analysis.baselines import BoostedTrees, MeanBaseline, RidgePCA
from consilience.analysis.calibration import Bands, Calibration, calibration
from consilience.analysis.comparison import Comparison, compare
from consilience.analysis.conditional import ConditionalCalibration, conditional_calibration
from consilience.analysis.contributions import Contributions, contributions
from consilience.analysis.decomposition import (
    Decomposition,
    PartialInformation,
    decomposition,
    partial_information,
)
from consilience.analysis.discs import Discs, discs
from consilience.analysis.domain import Domain, domain
from consilience.analysis.estimators import club, contrastive, gaussian_information, ksg
from consilience.analysis.highest_density import HighestDensity, highest_density
from consilience.analysis.imputation import Imputation, imputation
from consilience.analysis.information import BlockInformation, block_information
from consilience.analysis.joint import JointCalibration, joint_calibration
from consilience.analysis.latents import LatentMap, latents
from consilience.analysis.likeness import ssim
from consilience.analysis.outliers import Outliers, outliers
from consilience.analysis.pattern_calibration import PatternCalibration, pattern_calibration
from consilience.analysis.probes import Probes, probes
from consilience.analysis.recalibration import Recalibrated, recalibration
from consilience.analysis.reconstruction import Reconstruction, reconstruction
from consilience.analysis.traversals import Traversals, traversals
from consilience.analysis.two_samples import c2st, frechet, mmd, sinkhorn
from consilience.analysis.uncertainty import Uncertainty, uncertainty
from consilience.analysis.what_next import WhatNext, what_next

__all__ = [
    "AbstractResult",
    "Attribution",
    "Bands",
    "BlockInformation",
    "BoostedTrees",
    "Calibration",
    "Comparison",
    "ConditionalCalibration",
    "Contributions",
    "Decomposition",
    "Discs",
    "Domain",
    "HighestDensity",
    "Imputation",
    "JointCalibration",
    "MeanBaseline",
    "LatentMap",
    "Outliers",
    "PartialInformation",
    "PatternCalibration",
    "Probes",
    "Recalibrated",
    "Reconstruction",
    "RidgePCA",
    "Traversals",
    "Uncertainty",
    "WhatNext",
    "attribution",
    "block_information",
    "c2st",
    "calibration",
    "club",
    "compare",
    "conditional_calibration",
    "contrastive",
    "contributions",
    "decomposition",
    "discs",
    "domain",
    "frechet",
    "gaussian_information",
    "highest_density",
    "imputation",
    "joint_calibration",
    "ksg",
    "latents",
    "mmd",
    "outliers",
    "partial_information",
    "pattern_calibration",
    "probes",
    "recalibration",
    "reconstruction",
    "sinkhorn",
    "ssim",
    "traversals",
    "uncertainty",
    "what_next",
]
