"""Tables for the command line: read for a model, filled in, or holding latent positions."""

from dataclasses import replace

import numpy as np

from consilience.data.observations import Modality, Observations, State
from consilience.data.samples import Latent
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.io import read, read_table
from consilience.predict.fitted import Fitted
from consilience.typing import PathOrStr

__all__ = ["as_observations", "filled", "read_for"]


def read_for(known: Schema, path: PathOrStr, schema: PathOrStr | None = None) -> Observations:
    """The rows of a file, restricted to the modalities of a model's schema.

    The file's own schema is used where it carries one, then ``schema``, then the model's: a file whose schema differs
    from the model's is refused when the model meets it.

    Raises:
        RequestError: no modality in common.
        DataError: what the reader refuses.
    """
    carried = schema is None and read_table(path).schema is not None
    obs = read(path, schema if schema is not None else None if carried else known)
    common = [name for name in known.names if name in obs.schema]
    if not common:
        raise RequestError(
            f"Expected at least one of the model's modalities {list(known.names)}; got {list(obs.schema.names)}. "
            "Give the model's schema, or another table."
        )
    return obs.select(*common)


def filled(fitted: Fitted, obs: Observations, *, n: int, seed: int) -> tuple[Observations, int]:
    r"""The table with every unseen cell given its predictive mean and, as sigma, its predictive standard deviation.

    Seen cells, limits among them, stay as they are. Counts and binaries get the rounded median; categories, which
    have neither mean nor median, stay unseen.

    Arguments:
        fitted: Any fitted model.
        obs: Rows with gaps.
        n: Draws behind each mean.
        seed: Of the draws.

    Returns:
        The filled table with all modalities of the model, and the number of cells filled.
    """
    names = [spec.name for spec in fitted.schema.modalities if spec.kind != "category"]
    found = fitted.summarise(obs, names, statistics=("mean", "std", "q50"), n=n, seed=seed).statistics
    parts, count = {}, 0
    for spec in fitted.schema.modalities:
        part = obs.parts.get(spec.name)
        if part is None:
            shape = (len(obs), *spec.shape)
            part = Modality(np.full(shape, np.nan), np.full(shape, State.UNSEEN, np.int8))
        if spec.name in names:
            fill = part.state == State.UNSEEN
            count += int(fill.sum())
            whole = spec.kind in ("count", "binary")
            value = np.round(found[spec.name]["q50"]) if whole else found[spec.name]["mean"]
            sigma = np.full(part.value.shape, np.nan) if part.sigma is None else part.sigma
            part = replace(
                part,
                value=np.where(fill, value, part.value),
                state=np.where(fill, np.int8(State.MEASURED), part.state),
                sigma=np.where(fill, found[spec.name]["std"], sigma),
            )
        parts[spec.name] = part
    return replace(obs, schema=fitted.schema, parts=parts), count


def as_observations(latent: Latent) -> Observations:
    """Latent positions as a table: a modality per block, its mean as value and its standard deviation as sigma.

    Example:
        >>> found = Latent({"shared": np.zeros((2, 3))}, {"shared": np.ones((2, 3))}, np.array(["a", "b"]))
        >>> as_observations(found).schema["shared"].shape
        (3,)
    """
    blocks = tuple(ModalitySpec(name=name, shape=mean.shape[1:]) for name, mean in latent.mean.items())
    return Observations.from_arrays(Schema(modalities=blocks), latent.mean, sigma=latent.std, ids=latent.ids)
