"""One probability model over everything that was observed, by any instrument.

The public names are resolved on first use (PEP 562), so that importing the package is quick.

Example:
    >>> import consilience as cs
    >>> cs.Grid(start=1000.0, stop=2000.0, size=3, unit="Angstrom").centres().tolist()
    [1000.0, 1500.0, 2000.0]
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience import analysis, errors, plots, simulators
    from consilience.data.observations import Modality, Observations, State
    from consilience.data.samples import Samples
    from consilience.data.schema import Cell, Grid, ModalitySpec, Schema, TimeBins
    from consilience.data.streaming import Streamed
    from consilience.errors import ConsilienceError
    from consilience.io import read, write
    from consilience.io.stream import stream
    from consilience.models.disentangled_vae import DisentangledVAE
    from consilience.models.flow_matching import FlowMatching
    from consilience.models.gp_vae import GPVAE
    from consilience.models.regression import Regression
    from consilience.models.shared_gplvm import SharedGPLVM
    from consilience.models.vae import VAE
    from consilience.models.vae_flow import VAEFlow
    from consilience.predict.fitted import Fitted, load
    from consilience.report.page import report
    from consilience.train.config import Stage, TrainConfig
    from consilience.workflow.fit import fit

__all__ = [
    "Cell",
    "ConsilienceError",
    "DisentangledVAE",
    "Fitted",
    "FlowMatching",
    "GPVAE",
    "Grid",
    "Modality",
    "ModalitySpec",
    "Observations",
    "Regression",
    "Samples",
    "Schema",
    "SharedGPLVM",
    "Stage",
    "State",
    "Streamed",
    "TimeBins",
    "TrainConfig",
    "VAE",
    "VAEFlow",
    "__version__",
    "analysis",
    "errors",
    "fit",
    "load",
    "plots",
    "read",
    "report",
    "simulators",
    "stream",
    "write",
]

__version__ = "0.1.0"

_HOMES = {
    "Cell": "consilience.data.schema",
    "ConsilienceError": "consilience.errors",
    "DisentangledVAE": "consilience.models.disentangled_vae",
    "FlowMatching": "consilience.models.flow_matching",
    "Fitted": "consilience.predict.fitted",
    "GPVAE": "consilience.models.gp_vae",
    "Grid": "consilience.data.schema",
    "Modality": "consilience.data.observations",
    "ModalitySpec": "consilience.data.schema",
    "Observations": "consilience.data.observations",
    "Samples": "consilience.data.samples",
    "Schema": "consilience.data.schema",
    "Regression": "consilience.models.regression",
    "SharedGPLVM": "consilience.models.shared_gplvm",
    "Stage": "consilience.train.config",
    "State": "consilience.data.observations",
    "Streamed": "consilience.data.streaming",
    "TimeBins": "consilience.data.schema",
    "TrainConfig": "consilience.train.config",
    "VAE": "consilience.models.vae",
    "VAEFlow": "consilience.models.vae_flow",
    "fit": "consilience.workflow.fit",
    "load": "consilience.predict.fitted",
    "read": "consilience.io",
    "report": "consilience.report.page",
    "stream": "consilience.io.stream",
    "write": "consilience.io",
}
_SUBPACKAGES = ("analysis", "errors", "plots", "simulators")


class _Package(ModuleType):
    """This package's module: a verb keeps its name when the subpackage of that name (``report``) is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name in _SUBPACKAGES:
        return importlib.import_module(f"consilience.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'consilience' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
