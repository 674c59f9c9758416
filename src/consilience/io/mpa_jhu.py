r"""The MPA-JHU catalogue of SDSS galaxies as photometry, labels and detections, like ``simulators.sdss_galaxies``.

The table is one query of SkyServer or CasJobs, saved as CSV, FITS or anything else that :func:`consilience.io.read`
takes; columns may be upper or lower case::

    SELECT i.specObjID, i.z, i.z_err, i.v_disp, i.v_disp_err, e.oh_p16, e.oh_p50, e.oh_p84,
      e.lgm_tot_p16, e.lgm_tot_p50, e.lgm_tot_p84, e.sfr_tot_p16, e.sfr_tot_p50, e.sfr_tot_p84,
      l.h_alpha_flux, l.h_alpha_flux_err, l.h_beta_flux, l.h_beta_flux_err,
      l.nii_6584_flux, l.nii_6584_flux_err, l.oiii_5007_flux, l.oiii_5007_flux_err,
      p.modelFlux_u * POWER(10e0, 0.4 * p.extinction_u) AS modelFlux_u,
      p.modelFluxIvar_u / POWER(10e0, 0.8 * p.extinction_u) AS modelFluxIvar_u  -- and so in g, r, i and z
    FROM galSpecInfo AS i
      JOIN galSpecExtra AS e ON e.specObjID = i.specObjID
      JOIN galSpecLine AS l ON l.specObjID = i.specObjID
      JOIN SpecObj AS s ON s.specObjID = i.specObjID
      JOIN PhotoObj AS p ON p.objID = s.bestObjID
    WHERE i.reliable = 1 AND i.z_warning = 0

The powers take off the dust of the Milky Way, which simulated galaxies do not have. What the columns mean is
``mpa_jhu.toml`` beside this file; what the catalogue does not state directly is :func:`derived`.

References:
    Kauffmann et al. 2003, MNRAS 341, 33; Brinchmann et al. 2004, MNRAS 351, 1151; Tremonti et al. 2004, ApJ 613, 898;
    McConnell & Ma 2013, ApJ 764, 184; github.com/sciserver/sqlloader, galSpecTables.sql (columns and units).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.io import read_table
from consilience.io.conversion import linear_map
from consilience.io.meaning import observations_of
from consilience.io.raw import RawColumn, RawTable
from consilience.typing import FloatArray, PathOrStr

__all__ = ["SCHEMA", "derived", "read_mpa_jhu"]

SCHEMA = Path(__file__).with_suffix(".toml")
LINES = {"ha": "h_alpha", "hb": "h_beta", "nii": "nii_6584", "oiii": "oiii_5007"}
LINE_UNIT = "1e-17 erg / (s cm2)"
DETECTED = 3.0  # signal-to-noise ratio of a line that counts
DISPERSIONS = (70.0, 420.0)  # km/s: narrower than the spectrograph resolves, broader than the templates


def read_mpa_jhu(path: PathOrStr) -> Observations:
    """Galaxies of the MPA-JHU catalogue: ``photometry`` in u, g, r, i, z, ``labels`` and ``detected``.

    Names, cells and units are those of :func:`consilience.simulators.sdss_galaxies`, so a model of one answers for the
    other. Join images by ``specObjID`` with :meth:`~consilience.data.observations.Observations.join`.

    Raises:
        DataError: the file is missing or damaged, a column is missing, or a number contradicts its meaning.
        SchemaError: a unit that does not convert.

    Example:
        >>> Schema.read(SCHEMA).names
        ('photometry', 'labels', 'detected')
    """
    schema = Schema.read(SCHEMA)
    table = read_table(path, text=(schema.id,))
    return observations_of(derived(table, schema), schema, Path(path).parent)


def derived(table: RawTable, schema: Schema) -> RawTable:
    r"""The catalogue with what its columns imply, in the words of ``schema``.

    **Error bars** of log M, log SFR and 12 + log O/H are half of what lies between the percentiles 16 and 84.

    **Lines**, with :math:`f \pm e` as the catalogue states them: ``detected`` where :math:`f > 3 e` in all of Hα, Hβ,
    [N II] 6584 and [O III] 5007, unseen where one was not measured. Where it is 1, ``log_ha`` and so on are

    .. math:: \log_{10} f \pm \frac{e}{f \ln 10}

    and unseen elsewhere, as in the simulator.

    **Black holes** are not measured: they are what the velocity dispersion s says by McConnell & Ma's relation, where
    it is between 70 and 420 km/s, and the error bar holds the relation's scatter:

    .. math:: \log_{10} \frac{M}{M_\odot} = 8.32 + 5.64 \log_{10} \frac{s}{200\,\mathrm{km/s}}
        \pm \sqrt{0.38^2 + \left(\frac{5.64\, e_s}{s \ln 10}\right)^2}

    Arguments:
        table: Columns as SkyServer calls them, upper or lower case.
        schema: What ``mpa_jhu.toml`` says, or the same with other modalities.

    Raises:
        DataError: a column that is not there or holds no numbers.
        SchemaError: a unit that does not convert.
    """
    known = {name.lower(): column for name, column in table.columns.items()}
    cells = [cell for spec in schema.modalities for cell in spec.cells]
    wanted = {schema.id, *(name for cell in cells for name in (cell.column, cell.sigma, cell.ivar) if name is not None)}
    spelt = {name: known[name.lower()] for name in wanted if name.lower() in known}
    sentinels = np.array(schema["labels"].sentinels, dtype=np.float32)
    lower = replace(table, columns=known)

    def numbers(name: str, unit: str | None = None) -> FloatArray:
        """A column in this unit or in its own, NaN where it was not measured."""
        values, scale = lower.numbers(name), 1.0
        if unit is not None:
            scale, _ = linear_map(known[name].unit, unit, f"column {name!r} of {table.source}")
        return np.where(np.isin(values.astype(np.float32), sentinels), np.nan, scale * values)

    made: dict[str, FloatArray] = {}
    for name in ("lgm_tot", "sfr_tot", "oh"):
        width = 0.5 * (numbers(f"{name}_p84") - numbers(f"{name}_p16"))
        made[f"{name}_error"] = np.where(width > 0, width, np.nan)
    flux = np.column_stack([numbers(f"{line}_flux", LINE_UNIT) for line in LINES.values()])
    error = np.column_stack([numbers(f"{line}_flux_err", LINE_UNIT) for line in LINES.values()])
    measured = (np.isfinite(flux) & (error > 0)).all(axis=1)
    found = measured & (flux > DETECTED * error).all(axis=1)
    made["detected"] = np.where(measured, found, np.nan)
    flux[~found] = np.nan
    for at, name in enumerate(LINES):
        made[f"log_{name}"] = np.log10(flux[:, at])
        made[f"log_{name}_error"] = error[:, at] / (flux[:, at] * np.log(10))
    s, e = numbers("v_disp", "km / s"), numbers("v_disp_err", "km / s")
    s = np.where((s > DISPERSIONS[0]) & (s < DISPERSIONS[1]) & (e > 0), s, np.nan)
    made["log_mbh"] = 8.32 + 5.64 * np.log10(s / 200)
    made["log_mbh_error"] = np.hypot(0.38, 5.64 * e / (s * np.log(10)))
    new = {name: RawColumn(values) for name, values in made.items()}
    return replace(table, columns={**table.columns, **spelt, **new})
