"""Tables of the quasar simulator: emission lines, iron blends, virial and bolometric constants, with their sources.

References:
    - Baskin & Laor 2005, MNRAS 356, 1029 (C IV and the Eddington ratio).
    - Boroson & Green 1992, ApJS 80, 109 (Eigenvector 1: Fe II against [O III]).
    - Dietrich et al. 2002, ApJ 581, 912 (Baldwin slopes of many lines).
    - Kinney, Rivolo & Koratkar 1990, ApJ 357, 338 (Baldwin slope of C IV).
    - Richards et al. 2006, ApJS 166, 470 (bolometric corrections, as used by Shen et al. 2011).
    - Shen et al. 2011, ApJS 194, 45 (catalogue of widths, strengths, virial masses; host fraction).
    - Vanden Berk et al. 2001, AJ 122, 549 (composite spectrum: equivalent widths, table 2).
    - Vestergaard & Osmer 2009, ApJ 699, 800; Vestergaard & Peterson 2006, ApJ 641, 689 (virial masses).
    - Vestergaard & Wilkes 2001, ApJS 134, 1 (iron template, of which the blends here are a cartoon).
"""

from dataclasses import dataclass

__all__ = [
    "BROAD_BASE",
    "IRON_OPTICAL",
    "IRON_OPTICAL_WINDOW",
    "IRON_UV",
    "LINES",
    "LOG_EDDINGTON",
    "VIRIAL",
    "Line",
    "Virial",
]

LOG_EDDINGTON = 38.10  # log10 of 1.26e38 erg/s, the Eddington luminosity of one solar mass of ionised hydrogen

# A broad profile is 60 % a Gaussian and 40 % one of 2.2 times the line's FWHM: the wings of observed profiles. With
# the first at 0.8733 times the FWHM, the sum has exactly the line's FWHM (solved numerically).
BROAD_BASE = ((0.6, 0.8733106917872384), (0.4, 2.2))


@dataclass(frozen=True, slots=True)
class Virial:
    """The virial relation log M = a + b (log λL_λ - 44) + 2 log FWHM[km/s] of one line.

    Arguments:
        a: Zero point, dex(Msun).
        b: Slope of the radius-luminosity relation.
        correction: L_bol / λL_λ at the continuum wavelength that belongs to the line.
        scatter: The line's own scatter in log FWHM, dex, beside the object's shared one.
    """

    a: float
    b: float
    correction: float
    scatter: float


# Zero points: Vestergaard & Peterson 2006 (C IV, H beta), Vestergaard & Osmer 2009 (Mg II).
# Corrections at 1350, 3000, 5100 Angstrom: Richards et al. 2006. C IV is the least reliable (Baskin & Laor 2005).
VIRIAL = {
    "civ": Virial(a=0.66, b=0.53, correction=3.81, scatter=0.12),
    "mgii": Virial(a=0.86, b=0.50, correction=5.15, scatter=0.07),
    "hbeta": Virial(a=0.91, b=0.50, correction=9.26, scatter=0.08),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One emission line of the average quasar.

    Arguments:
        name: Ion.
        wavelength: Rest wavelength, Angstrom (vacuum).
        width: Equivalent width at log L_bol = 46.4, Angstrom (Vanden Berk et al. 2001, rounded, blends split).
        baldwin: Slope of log EW against log L_bol (Dietrich et al. 2002, rounded; C IV: Kinney et al. 1990).
        family: Whose virial width it has (a key of ``VIRIAL``), or "narrow".
        stretch: Its FWHM in units of the family's.
        wind: Its blueshift in units of that of C IV.
    """

    name: str
    wavelength: float
    width: float
    baldwin: float
    family: str
    stretch: float = 1.0
    wind: float = 0.0


LINES = (
    Line("Lya", 1215.67, 75.0, -0.12, "civ", 1.2, 0.3),
    Line("N V", 1240.14, 12.0, 0.00, "civ", 1.0, 0.6),
    Line("O I", 1305.42, 1.7, -0.05, "mgii"),
    Line("C II", 1335.30, 0.7, -0.05, "mgii"),
    Line("Si IV + O IV]", 1399.80, 8.0, -0.10, "civ", 1.1, 0.5),
    Line("C IV", 1549.06, 26.0, -0.20, "civ", 1.0, 1.0),
    Line("He II", 1640.42, 4.0, -0.25, "civ", 1.4, 0.8),
    Line("O III]", 1663.48, 1.0, -0.15, "civ"),
    Line("Al III", 1857.40, 1.5, -0.05, "mgii"),
    Line("Si III]", 1892.03, 2.5, -0.05, "mgii"),
    Line("C III]", 1908.73, 19.0, -0.10, "mgii", 1.25, 0.2),
    Line("Mg II", 2798.75, 30.0, -0.13, "mgii"),
    Line("[Ne V]", 3426.84, 1.2, -0.20, "narrow"),
    Line("[O II]", 3728.48, 1.6, -0.20, "narrow"),
    Line("[Ne III]", 3869.85, 1.4, -0.20, "narrow"),
    Line("H delta", 4102.89, 6.0, 0.00, "hbeta"),
    Line("H gamma", 4341.68, 14.0, 0.00, "hbeta"),
    Line("H beta", 4862.68, 46.0, 0.00, "hbeta"),
    Line("[O III] 4960", 4960.30, 4.4, -0.20, "narrow"),
    Line("[O III] 5008", 5008.24, 13.2, -0.20, "narrow"),
)

# Stylised blends of Fe II and Fe III: (wavelength in Angstrom, relative strength). Placed by eye on the bumps of the
# template of Vestergaard & Wilkes 2001; not a fit to it.
IRON_UV = (
    (2255.0, 0.35),
    (2325.0, 0.70),
    (2400.0, 0.95),
    (2475.0, 1.00),
    (2545.0, 0.95),
    (2610.0, 0.80),
    (2680.0, 0.30),
    (2750.0, 0.50),
    (2855.0, 0.30),
    (2940.0, 0.45),
    (3000.0, 0.25),
    (3070.0, 0.15),
)

# Multiplets 27, 28 (4178-4416), 37, 38 (4491-4629) and 42 (4924-5018) of Fe II, relative strengths rounded.
IRON_OPTICAL = (
    (4178.0, 0.30),
    (4233.0, 0.45),
    (4303.0, 0.25),
    (4352.0, 0.35),
    (4416.0, 0.30),
    (4491.0, 0.60),
    (4520.0, 0.80),
    (4555.0, 0.90),
    (4584.0, 1.00),
    (4629.0, 0.80),
    (4924.0, 0.70),
    (5018.0, 0.90),
)

IRON_OPTICAL_WINDOW = (4434.0, 4684.0)  # where the ratio of Fe II to H beta is measured (Boroson & Green 1992)
