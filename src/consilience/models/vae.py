r"""Variational autoencoder of one modality, with missing cells and error bars.

.. math::
    \log p(x) \ge E_{q(z \mid x)} \log p(x \mid g(z)) - KL(q(z \mid x) \| N(0, I))

It is :class:`DisentangledVAE` with one modality, one block and one bound.

References:
    Auto-encoding variational Bayes (Kingma & Welling, 2014).
"""

from typing import Literal

from pydantic import Field

from consilience.blocks.encoders import Kind
from consilience.data.masking import HidePatterns, Policy
from consilience.data.schema import Schema
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily, AbstractModel
from consilience.models.disentangled_vae import DisentangledVAE, Likelihood

__all__ = ["VAE"]


class VAE(AbstractFamily):
    """Configuration of latents read and drawn by networks.

    Example:
        >>> VAE(latent_dim=3).network
        'dense'
    """

    family: Literal["VAE"] = "VAE"
    latent_dim: int = Field(default=8, ge=1)  # Q
    network: Kind = "dense"  # of encoder and decoder: dense, linear, conv
    hidden: int = Field(default=128, ge=1)  # width of dense layers
    channels: int = Field(default=16, ge=1)  # after the first convolution
    likelihood: Likelihood | None = None  # by the kind of the modality
    posterior: Literal["diagonal", "full"] = "diagonal"  # full: latents may depend on each other

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        if len(schema.names) != 1:
            raise SchemaError(
                f"Expected one modality; got {list(schema.names)}. Select one, or use DisentangledVAE for all."
            )
        name = schema.names[0]
        whole = DisentangledVAE(
            shared=self.latent_dim,
            networks={name: self.network},
            hidden=self.hidden,
            channels=self.channels,
            likelihoods={} if self.likelihood is None else {name: self.likelihood},
            posterior=self.posterior,
            bounds=("joint",),
        )
        return whole.build(schema, total, seed)
