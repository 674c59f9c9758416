"""The wiring: one family per file. ``MODELS`` names them; a new family is one file and one line here."""

import importlib
from collections.abc import Mapping

from consilience.data.schema import nearest, validated
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily

MODELS = {
    "DisentangledVAE": "consilience.models.disentangled_vae",
    "FlowMatching": "consilience.models.flow_matching",
    "GPVAE": "consilience.models.gp_vae",
    "Regression": "consilience.models.regression",
    "SharedGPLVM": "consilience.models.shared_gplvm",
    "VAE": "consilience.models.vae",
    "VAEFlow": "consilience.models.vae_flow",
}


def family_from(data: Mapping[str, object]) -> AbstractFamily:
    """The family configuration of plain data, as read from TOML or JSON; ``data["family"]`` names it.

    Raises:
        SchemaError: an unknown family, or an unknown or unfit option.

    Example:
        >>> family_from({"family": "SharedGPLVM", "latent_dim": 2}).latent_dim
        2
    """
    name = str(data.get("family"))
    if name not in MODELS:
        raise SchemaError(f"Expected a family among {sorted(MODELS)}; got {name!r}.{nearest(name, MODELS)}")
    return validated(getattr(importlib.import_module(MODELS[name]), name), dict(data), where=name)
