"""Linear maps between the unit a file states and the unit a schema asks for."""

from consilience.errors import SchemaError

__all__ = ["linear_map"]


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
        >>> linear_map("nm", "Angstrom", "column 'wave'")
        (10.0, 0.0)
    """
    if stated is None or stated.strip() in ("", wanted):
        return 1.0, 0.0
    import numpy as np
    from astropy import units

    refusal = f"Expected {what} in a unit that converts to {wanted or 'dimensionless'!r}; got {stated!r}."
    advice = "Set `unit` in the schema to the file's own, or mend the file."
    try:
        source = units.Unit(stated)
    except ValueError as error:
        raise SchemaError(f"{refusal} That unit is unknown. {advice}") from error
    try:
        f = np.array([source.to(units.Unit(wanted), x) for x in (0.0, 1.0, 2.0)])
    except (units.UnitConversionError, units.UnitTypeError) as error:
        raise SchemaError(f"{refusal} {advice}") from error
    a, b = float(f[1] - f[0]), float(f[0])
    if not (np.isfinite(f).all() and a > 0 and np.isclose(f[2] - f[1], a, rtol=1e-9, atol=0)):
        raise SchemaError(f"{refusal} The map is not linear and increasing. {advice}")
    return a, b
