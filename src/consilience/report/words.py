"""The numbers of a report said in sentences: how sure, how right, who told, and what is strange."""

from collections.abc import Iterator, Sequence

import numpy as np

from consilience import analysis
from consilience.report.answers import Answers
from consilience.typing import FloatArray

__all__ = ["sentences"]

SURE = 0.01  # p-value below which something is said to be wrong
LEVELS = (0.68, 0.95)
LEARNED = 1.05  # times that an error must be smaller to be worth saying
NAMED = 3  # of a list, the worst ones


def sentences(found: Answers) -> tuple[str, ...]:
    """What the analyses of a report found, each in one or two plain sentences; nothing of those that are missing."""
    said: list[str] = []
    if found.calibration is not None:
        said += [*_learned(found.calibration), _covered(found.calibration)]
    if found.patterns is not None:
        said.append(_patterns(found.patterns))
    if found.conditional is not None:
        said.append(_heard(found.conditional))
    if found.attribution is not None:
        said += _told(found.attribution)
    if found.comparison is not None:
        said.append(_compared(found.comparison))
    if found.outliers is not None:
        said.append(_strange(found.outliers))
    return tuple(said)


def _learned(found: analysis.Calibration) -> Iterator[str]:
    """Of errors, not of what the model claims of them."""
    gain = 1 / np.sqrt(np.maximum(1 - found.scores["r2"], 1e-12))
    known = [c for c in np.argsort(-np.nan_to_num(gain)) if gain[c] > LEARNED]
    if known:
        best = _listed([f"for {found.cells[c]} {gain[c]:.2g} times" for c in known[:NAMED]])
        more = f", to name the best of {len(known)}" if len(known) > NAMED else ""
        yield f"Given {_listed(found.given)}, the error is smaller {best} than without{more}."
    blind = [found.cells[c] for c in np.flatnonzero(gain <= LEARNED)]
    if blind:
        yield f"Hardly anything is learned of {_listed(blind[:NAMED])}{_more(blind)}."


def _covered(found: analysis.Calibration) -> str:
    levels = [k for k, level in enumerate(found.bands.levels) if level in LEVELS] or [0]
    names = [f"{100 * found.bands.levels[k]:g} %" for k in levels]
    weight = found.rows / max(found.rows.sum(), 1)
    if found.inside_band:
        held = _listed([f"{100 * np.nansum(weight * found.coverage[:, k]):.0f} %" for k in levels])
        return (
            f"Error bars hold as far as {found.rows.max()} rows can tell: intervals of {_listed(names)} contain {held} "
            "of the measured values."
        )
    return f"Error bars do not hold: {_worst(found)}."


def _worst(found: analysis.Calibration) -> str:
    """The cells that are farthest from a level, in words."""
    off = found.coverage - np.array(found.bands.levels)
    beyond = np.maximum(found.low - found.coverage, found.coverage - found.high)
    order = [c for c in np.argsort(-np.nan_to_num(beyond, nan=-1).max(axis=1)) if np.nanmax(beyond[c]) > 0]
    said = []
    for c in order[:NAMED] or [0]:
        k = int(np.nanargmax(beyond[c]))
        which = "short" if off[c, k] < 0 else "over"
        said.append(
            f"{found.cells[c]} is {100 * abs(off[c, k]):.0f} points {which} at {100 * found.bands.levels[k]:g} %"
        )
    return _listed(said) + _more(order)


def _patterns(found: analysis.PatternCalibration) -> str:
    wrong = [(name, one) for name, one in zip(found.patterns, found.each, strict=True) if not one.inside_band]
    if not wrong:
        count = len(found.patterns)
        kinds = "rows with gaps" if count == 1 else f"each of the {count} patterns of what is missing"
        return f"This holds for {kinds} by itself."
    said = [f"in the {one.rows.max()} rows '{name}' {_worst(one)}" for name, one in wrong[:NAMED]]
    return f"It depends on what is missing: {'; '.join(said)}{_more(wrong)}."


def _heard(found: analysis.ConditionalCalibration) -> str:
    if found.pvalue >= SURE:
        return "Nothing that was shown foretells where in its posterior the truth lies: no modality was left unheard."
    kinds = np.nan_to_num(np.stack([found.position, found.width])[:, :-1])
    if not kinds.size or kinds.max() <= 0:
        return "All modalities together foretell where in its posterior the truth lies; no single one does."
    kind, source, cell = np.unravel_index(int(kinds.argmax()), kinds.shape)
    name, quantity, share = found.sources[source], found.cells[cell], 100 * kinds[kind, source, cell]
    if kind == 0:
        what = f"on which side of its posterior the true {quantity} lies"
        advice = f"the model has not made everything of {name}"
    else:
        what = f"how far from the middle of its posterior the true {quantity} lies"
        advice = f"error bars are too small for some values of {name} and too large for others"
    return f"What {name} shows foretells {what} ({share:.1f} % of the variance): {advice}."


def _told(found: analysis.Attribution) -> Iterator[str]:
    bits = bool(np.isfinite(found.bits_value).any())
    value = found.bits_value if bits else found.r2_value
    total = value.sum(axis=0)
    order = [c for c in np.argsort(-np.nan_to_num(total)) if total[c] > (0.05 if bits else 0.02)]
    for c in order[:NAMED]:
        share = value[:, c] / total[c]
        names = [f"{100 * share[m]:.0f} % from {found.modalities[m]}" for m in np.argsort(-share)]
        known = (
            f"{total[c]:.2g} bits known about {found.cells[c]}" if bits else f"R² of {found.cells[c]}, {total[c]:.2g}"
        )
        yield f"Of the {known}, {_listed(names)}."


def _compared(found: analysis.Comparison) -> str:
    gain = -found.advantage()
    better = [found.cells[c] for c in np.flatnonzero(gain > 0)]
    worse = [found.cells[c] for c in np.flatnonzero(gain <= 0)]
    text = f"The model beats every baseline in {len(better)} of {len(found.cells)} quantities"
    if better:
        text += f" (by {_span(gain[gain > 0])} nats an object)"
    return text + (f"; not in {_listed(worse[:NAMED])}{_more(worse)}." if worse else ".")


def _strange(found: analysis.Outliers) -> str:
    count, chance = int(found.flagged.sum()), found.rate * len(found.ids)
    first = str(found.table()["id"][0])
    text = f"{count} of {len(found.ids)} objects look unlike the reference; {chance:.1f} would by chance"
    return f"{text}. The strangest is {first}." if count else f"{text}."


def _span(values: FloatArray) -> str:
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high else f"{low} to {high}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    if len(names) < 2:
        return "".join(names) or "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _more(every: Sequence[object]) -> str:
    return f" (and {len(every) - NAMED} more)" if len(every) > NAMED else ""
