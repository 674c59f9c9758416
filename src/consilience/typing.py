"""Array aliases and the glossary of axes.

=====  ====================================================================
axis   meaning
=====  ====================================================================
``N``  objects in a table                 ``B``  objects in one batch
``S``  posterior draws                    ``D``  cells of one modality
``T``  time bins                          ``Q``  latent dimensions
``H``  hidden units                       ``L``  labels
``M``  inducing points
=====  ====================================================================

Axis order is always draws, objects, event: ``(S, B, *event)``.
"""

from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoolArray", "FloatArray", "IntArray", "PathOrStr", "StringArray"]

FloatArray: TypeAlias = NDArray[np.floating]
IntArray: TypeAlias = NDArray[np.integer]
BoolArray: TypeAlias = NDArray[np.bool_]
StringArray: TypeAlias = NDArray[np.str_]
PathOrStr: TypeAlias = str | PathLike[str]
