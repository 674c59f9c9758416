"""Linear maps between the unit a file states and the unit a schema asks for."""

from typing import Any

from consilience.errors import SchemaError

__all__ = ["error_scale", "linear_map"]


def linear_map(stated: str | None, wanted: str, what: str) -> tuple[float, float]:
    r"""The scale a > 0 and offset b of :math:`x_\mathrm{wanted} = a\,x_\mathrm{stated} + b`.

    A file that states no unit is taken to hold the wanted one.

    Arguments:
        stated: The file's unit, or None.
        wanted: The schema's unit; empty is dimensionless.
        what: The column and its file, for the message.

    Raises:
        SchemaError: an unknown unit, or one that no increasing linear map takes to the other.

    Example:
        >>> linear_map("km", "m", "column 'distance'")
        (1000.0, 0.0)
    """
    if stated is None or stated.strip() in ("", wanted):
        return 1.0, 0.0
    return _map(_parsed(stated, wanted, what), _parsed(wanted, wanted, what), (stated, wanted, what))


def error_scale(stated: str, wanted: str, what: str, *, power: int = 1) -> float:
    r"""The scale a > 0 that takes an error bar (power 1) or an inverse variance (power -2) to the value's unit.

    An error of a magnitude ``mag(AB)`` is in ``mag``, with or without the zero point.

    Arguments:
        stated: The unit that the file states for the error.
        wanted: The schema's unit of the value.
        what: The column and its file, for the message.
        power: Power of the value's unit in which the error is stated.

    Raises:
        SchemaError: as for :func:`linear_map`.

    Example:
        >>> error_scale("mag", "mag(AB)", "column 'e_g'"), error_scale("1 / Jy2", "mJy", "column 'ivar'", power=-2)
        (1.0, 1e-06)
    """
    source, unit = (_spread(_parsed(text, wanted, what)) for text in (stated, wanted))
    shown = wanted if power == 1 else f"({wanted})^{power}"
    return _map(source, unit**power, (stated, shown, what))[0]


def _spread(unit: Any) -> Any:  # noqa: ANN401 - any of astropy's unit classes
    """The unit of a difference: magnitudes for magnitudes with a zero point."""
    from astropy.units.function import FunctionUnitBase

    return unit.function_unit if isinstance(unit, FunctionUnitBase) else unit


def _parsed(text: str, wanted: str, what: str) -> Any:  # noqa: ANN401
    from astropy import units

    try:
        return units.Unit(text)
    except ValueError as error:
        raise SchemaError(
            f"Expected {what} in a unit that converts to {wanted or 'dimensionless'!r}; got {text!r}, which astropy "
            "does not know. Mend the unit in the file or leave it out."
        ) from error


def _map(source: Any, unit: Any, words: tuple[str, str, str]) -> tuple[float, float]:  # noqa: ANN401
    import numpy as np
    from astropy import units

    stated, wanted, what = words
    refusal = f"Expected {what} in a unit that converts to {wanted or 'dimensionless'!r}; got {stated!r}."
    advice = "Set `unit` in the schema to the file's own, or mend the file."
    try:
        f = np.array([source.to(unit, x) for x in (0.0, 1.0, 2.0)])
    except (units.UnitConversionError, units.UnitTypeError) as error:
        raise SchemaError(f"{refusal} {advice}") from error
    a, b = float(f[1] - f[0]), float(f[0])
    if not (np.isfinite(f).all() and a > 0 and np.isclose(f[2] - f[1], a, rtol=1e-9, atol=0)):
        raise SchemaError(f"{refusal} The map is not linear and increasing. {advice}")
    return a, b
