"""Figures of ``study galaxies-flow``."""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from consilience import plots
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec
from consilience.predict.fitted import Fitted

__all__ = ["drawn_and_measured", "ignorance", "maps"]

MAPPED = 2000  # galaxies on a map


def ignorance(labels: ModalitySpec, spreads: Mapping[str, float], sizes: Sequence[int]) -> plots.Figure:
    """Both spreads over the number of training rows, three labels to a panel."""
    cells = list(zip(labels.cell_names(), labels.cell_units(), strict=True))
    panels = []
    for first in range(0, len(cells), 3):
        shown = [(name, plots.with_unit(name, unit)) for name, unit in cells[first : first + 3]]
        found = [
            {title: np.array([spreads[f"{kind}_{name}_{rows}"] for rows in sizes]) for name, title in shown}
            for kind in ("aleatoric", "epistemic")
        ]
        words = plots.Labels(x="training rows", y="root of mean variance")
        panels.append(plots.Trend(np.array(sizes, dtype=float), found[0], found[1], words, log=True))
    return plots.trends(panels, ("aleatoric", "epistemic"))


def drawn_and_measured(fitted: Fitted, test: Observations, names: Sequence[str], seed: int) -> plots.Figure:
    """Labels of the galaxies that have them: one draw of each, and what was measured."""
    spec, part = test.schema["labels"], test.parts["labels"]
    columns = [spec.cell_names().index(name) for name in names]
    units = [spec.cell_units()[column] for column in columns]
    rows = np.flatnonzero(part.measured[:, columns].all(axis=1))
    drawn = fitted.sample(test[rows].hide("labels", "detected"), ["labels"], n=1, seed=seed).values["labels"]
    title = f"one draw of each of {len(rows)} galaxies"
    return plots.corner(drawn[0][:, columns], names, units, part.value[rows][:, columns], title)


def maps(fitted: Fitted, test: Observations, seed: int) -> dict[str, plots.Figure]:
    """Galaxies by t-SNE of their image's latents, and of these and their photometry, coloured by mass."""
    rows = test[np.flatnonzero(test.parts["image"].measured.any(axis=(1, 2, 3)))[:MAPPED]]
    latent, part = fitted.latent(rows.hide("labels", "detected")).mean["image"], rows.parts["photometry"]
    mass = rows.parts["labels"].value[:, rows.schema["labels"].cell_names().index("log_mass")]
    flux = StandardScaler().fit_transform(np.arcsinh(np.where(part.measured, part.value, np.nan)))
    # a band without a measurement stands at the mean
    both = np.column_stack([StandardScaler().fit_transform(latent), np.nan_to_num(flux)])
    found = {}
    for name, x, title in (("map_image", latent, "images"), ("map_both", both, "images and photometry")):
        position = TSNE(random_state=seed, perplexity=min(30.0, (len(x) - 1) / 3)).fit_transform(x)
        labels = plots.Labels("t-SNE 1", "t-SNE 2", f"{len(x)} galaxies by {title}")
        found[name] = plots.latent_map(np.asarray(position, float), mass, labels, "log_mass [dex(Msun)]")
    return found
