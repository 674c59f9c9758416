r"""The image of a galaxy that is one elliptical disc: a decoder whose inputs are flux, size, shape and position.

A source of flux F_c in band c, half-light semi-major axis R, axis ratio q = 1 - e and position angle θ, from columns
towards rows, has :math:`I_c \propto F_c \exp(-b_n r^{1/n})` with
:math:`r^2 = (x'^2 + y'^2 / q^2) / R^2` in axes turned by θ. Its image, in linear flux per pixel, is the inverse Fourier
transform of

.. math:: F_c\, T_n\!\big(R\,(k_{x'}^2 + q^2 k_{y'}^2)^{1/2}\big)\, M(k)\,
          \mathrm{sinc}\tfrac{k_x}{2}\, \mathrm{sinc}\tfrac{k_y}{2}\, e^{-i k \cdot c}

with T_n the transform of the round profile (``data/sersic.py``; :math:`T_1 = (1 + k^2 / b_1^2)^{-3/2}`), M that of
a Moffat function of β = 7/2 and c the centre, all in pixels: exact over pixels, with a period of twice the image. Only
then come the stretch and the scaling of the modality.

θ has period π and means nothing at e = 0, so the parameters are :math:`v = (v_1, v_2)` with
:math:`e\,(\cos 2θ, \sin 2θ) = v \tanh|v| / |v|`.

References:
    | Self-supervised learning with physics-aware neural networks: galaxy model fitting (Aragon-Calvo & Carvajal, 2020)
    | Physics-integrated variational autoencoders (Takeishi & Kalousis, 2021)
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from consilience.blocks.encoders import Architecture
from consilience.blocks.profiles import (
    MOFFAT_WIDTH,
    exponential,
    exponential_slopes,
    moffat,
    moffat_slope,
    sersic,
    sersic_index,
    sersic_slopes,
    sersic_table,
)
from consilience.data.scaling import CellTransform
from consilience.data.schema import Frozen

__all__ = ["Disc", "PhysicsDecoder", "Profile"]

TINY = 1e-12
STEPS, RATE = 200, 0.05  # of the fit to the mean image
WIDTHS = {  # of the population, until it is seen
    "log_flux": 1.0, "colour": 0.3, "log_radius": 0.5, "v": 0.5, "column": 0.3, "row": 0.3, "log_seeing": 0.15,
    "index": 1.0,
}  # fmt: skip


class Profile(Frozen):
    """What is known of the objects on images before any is seen.

    Example:
        >>> Profile(seeing=4.4).law
        'exponential'
    """

    law: Literal["exponential", "sersic"] = "exponential"  # of the light: n = 1, or n of every object
    seeing: PositiveFloat | None = None  # typical FWHM of a point in pixels, its own in each image; None: no atmosphere

    def parameters(self, shape: Sequence[int]) -> tuple[str, ...]:
        """Names of a disc's parameters on images of this shape, (H, W) or (C, H, W)."""
        bands = shape[0] if len(shape) == 3 else 1
        colours = (f"colour_{band}" for band in range(bands) if band != bands // 2)
        further = ("log_seeing",) * (self.seeing is not None) + ("index",) * (self.law == "sersic")
        return ("log_flux", *colours, "log_radius", "v_1", "v_2", "column", "row", *further)


class Disc(nn.Module):
    """Images of one elliptical disc each, from standardised parameters u: t = location + width · u.

    t are log flux of the middle band, colours (log flux of every other band less that), log R, v_1, v_2, column and row
    of the centre from the middle, then log seeing and a logit of n where the profile has them; logarithms are natural.

    Arguments:
        shape: Event shape: (H, W) or (C, H, W).
        profile: The law of light and the seeing.
        asinh: Whether that is the scale of the cells.

    Example:
        >>> Disc((3, 16, 16), Profile())(torch.zeros(2, 8)).shape
        torch.Size([2, 768])
    """

    stretch: Tensor
    origin: Tensor
    unit: Tensor
    pixel: Tensor  # typical flux of a pixel
    rows: Tensor  # wave numbers, (2 H, 1)
    columns: Tensor  # (1, W + 1)
    law: Tensor  # log T of Sérsic profiles

    def __init__(self, shape: Sequence[int], profile: Profile, *, asinh: bool = False) -> None:
        super().__init__()
        self.asinh = asinh
        self.bands, self.sides, self.profile = (shape[0] if len(shape) == 3 else 1), tuple(shape[-2:]), profile
        self.middle, self.names = self.bands // 2, profile.parameters(shape)
        typical = {"log_radius": math.log(min(self.sides) / 8), "log_seeing": math.log(profile.seeing or 1.0)}
        self.location = nn.Parameter(torch.tensor([typical.get(name, 0.0) for name in self.names]))
        kinds = [re.sub(r"_\d+$", "", name) for name in self.names]
        self.log_width = nn.Parameter(torch.tensor([math.log(WIDTHS[kind]) for kind in kinds]))
        cells = math.prod(shape)
        self.register_buffer("stretch", torch.ones(cells))  # of the modality's scaling
        self.register_buffer("origin", torch.zeros(cells))
        self.register_buffer("unit", torch.ones(cells))
        self.register_buffer("pixel", torch.ones(()))
        row, column = torch.fft.fftfreq(2 * self.sides[0]), torch.fft.rfftfreq(2 * self.sides[1])
        self.register_buffer("rows", 2 * math.pi * row[:, None], persistent=False)
        self.register_buffer("columns", 2 * math.pi * column[None], persistent=False)
        if profile.law == "sersic":
            self.register_buffer("law", sersic_table(), persistent=False)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.names)

    @torch.no_grad()
    def in_units(self, given: CellTransform) -> None:
        """Take the scaling of the modality."""
        for own, array in ((self.origin, given.location), (self.unit, given.scale), (self.stretch, given.stretch)):
            own.copy_(torch.as_tensor(np.ravel(array)))
        self.pixel.copy_((self.stretch if self.asinh else self.unit).mean())

    def parameters_at(self, u: Tensor) -> dict[str, Tensor]:
        """t by name at rows of u, each (R,)."""
        t = self.location + self.log_width.exp() * u
        return dict(zip(self.names, t.unbind(-1), strict=True))

    def physical(self, u: Tensor) -> dict[str, Tensor]:
        """Fluxes, half-light radius and centre in pixels, axis ratio, e cos 2θ, e sin 2θ, seeing, n if it is free.

        Arguments:
            u: Rows of standardised parameters (…, P); every answer is (…).
        """
        t = self.parameters_at(u)
        q, first, second = _ellipse(t["v_1"], t["v_2"])
        flux = self._flux(t)
        found = {f"flux_{band}": flux[..., band] for band in range(self.bands)}
        found |= {"half_light_radius": t["log_radius"].exp(), "axis_ratio": q}
        found |= {"e_cos2": first, "e_sin2": second, "column": t["column"], "row": t["row"]}
        if "log_seeing" in t:
            found["seeing"] = t["log_seeing"].exp()
        if "index" in t:
            found["index"] = sersic_index(t["index"])
        return found

    def flux(self, u: Tensor) -> Tensor:
        """Images in linear flux, (R, C, H, W)."""
        return self._flux(self.parameters_at(u))[:, :, None, None] * self._shape(u)[:, None]

    def slopes(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Images in linear flux at u (R, P), and their slopes (R, P, C, H, W)."""
        t, width = self.parameters_at(u), self.log_width.exp()
        flux, phase = self._flux(t)[:, :, None, None], self._phase(t)
        amplitude, bent = self._amplitude_slopes({name: value[:, None, None] for name, value in t.items()})
        turned = amplitude * phase
        image = flux * self._image(turned)[:, None]
        columns = []
        for column, name in enumerate(self.names):
            if name == "log_flux" or name.startswith("colour"):
                bands = [name in ("log_flux", f"colour_{band}") for band in range(self.bands)]
                slope = torch.tensor(bands).to(image)[:, None, None] * image
            elif name in ("row", "column"):
                wave = self.rows if name == "row" else self.columns
                slope = flux * self._image(wave * torch.complex(turned.imag, -turned.real))[:, None]
            else:
                slope = flux * self._image(bent[name] * phase)[:, None]
            columns.append(width[column] * slope)
        return image, torch.stack(columns, 1)

    def _shape(self, u: Tensor) -> Tensor:
        """Images of sources of flux 1, (R, H, W)."""
        return self._image(self._amplitude(u) * self._phase(self.parameters_at(u)))

    def _amplitude(self, u: Tensor) -> Tensor:
        """Fourier transform of sources of flux 1 in the middle, over pixels, (R, 2 H, W + 1)."""
        t = {name: value[:, None, None] for name, value in self.parameters_at(u).items()}
        found = self._round(t) * self._pixel()
        return found * moffat(self._blur(t)) if "log_seeing" in t else found

    def _amplitude_slopes(self, t: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same at t, each (R, 1, 1), and its slopes by what shapes it, in units of t."""
        total, stretched, crossed = self._waves()
        q, first, second = _ellipse(t["v_1"], t["v_2"])
        k2 = (2 * t["log_radius"]).exp() * _elongated(q, first, second, *self._waves())
        if "index" in t:
            found, by_k2, by_index = sersic_slopes(self.law, k2, t["index"])
            slopes = {"index": by_index}
        else:
            (found, by_k2), slopes = exponential_slopes(k2), {}
        slopes["log_radius"] = by_k2 * 2 * k2
        by_k2 = by_k2 * (2 * t["log_radius"]).exp() * (k2 > 0)
        for name, (dq, dfirst, dsecond) in _ellipse_slopes(t["v_1"], t["v_2"]).items():
            along = q * dq * total + 0.5 * (dq * first + (1 + q) * dfirst) * stretched
            slopes[name] = by_k2 * (along + 0.5 * (dq * second + (1 + q) * dsecond) * crossed)
        other = self._pixel()
        if "log_seeing" in t:
            x = self._blur(t)
            slopes["log_seeing"] = found * moffat_slope(x) / moffat(x)
            other = other * moffat(x)
        return found * other, {name: slope * other for name, slope in slopes.items()}

    def _waves(self) -> tuple[Tensor, Tensor, Tensor]:
        """k_x² + k_y², k_x² - k_y² and 2 k_x k_y, each (2 H, W + 1)."""
        x2, y2 = self.columns.square(), self.rows.square()
        return x2 + y2, x2 - y2, 2 * self.columns * self.rows

    def _pixel(self) -> Tensor:
        return torch.sinc(self.rows / (2 * math.pi)) * torch.sinc(self.columns / (2 * math.pi))

    def _blur(self, t: dict[str, Tensor]) -> Tensor:
        """Wave numbers in units of the atmosphere's."""
        return t["log_seeing"].exp() * torch.hypot(self.rows, self.columns) / MOFFAT_WIDTH

    def _phase(self, t: dict[str, Tensor]) -> Tensor:
        """Of the centres, (R, 2 H, W + 1)."""
        angles = (
            wave * (0.5 * (side - 1) + t[name])[:, None, None]
            for wave, side, name in zip((self.rows, self.columns), self.sides, ("row", "column"), strict=True)
        )
        down, across = (torch.complex(angle.cos(), -angle.sin()) for angle in angles)
        return down * across

    def _image(self, transformed: Tensor) -> Tensor:
        return torch.fft.irfft2(transformed, s=[2 * n for n in self.sides])[:, : self.sides[0], : self.sides[1]]

    def forward(self, u: Tensor) -> Tensor:
        """Cells in model units, (R, C · H · W)."""
        flux = self.flux(u).flatten(1)
        curved = torch.asinh(flux / self.stretch) if self.asinh else flux
        return (curved - self.origin) / self.unit

    def linear(self, cells: Tensor) -> Tensor:
        """Fluxes of cells in model units, (R, C · H · W)."""
        plain = self.origin + self.unit * cells
        return self.stretch * torch.sinh(plain) if self.asinh else plain

    @torch.no_grad()
    def begin(self, cells: Tensor, seen: Tensor) -> None:
        """Take the typical object of images in model units (N, D), and how bright and how red objects are.

        Size and shape are those of the mean image; fluxes are those that fit it to every image.
        """
        image = torch.where(seen, self.linear(cells.to(self.origin)), 0.0).unflatten(1, (self.bands, -1))
        seen = seen.to(image).unflatten(1, (self.bands, -1))
        mean = image.sum(0) / seen.sum(0).clamp_min(1)
        self.location[0] = mean[self.middle].sum().clamp_min(TINY).log()
        with torch.enable_grad():
            self._fit(mean)
        profile = self.flux(torch.zeros(1, self.size).to(self.origin))[0].flatten(1)
        shape = profile / profile.sum(-1, keepdim=True)
        flux = (image * shape).sum(-1) / (seen * shape.square()).sum(-1).clamp_min(TINY)
        log = flux.clamp_min(0.1 * flux.median(0).values.abs().clamp_min(TINY)).log()
        others = [band for band in range(self.bands) if band != self.middle]
        values = torch.stack([log[:, self.middle], *(log[:, band] - log[:, self.middle] for band in others)])
        self.location[: self.bands] = values.median(-1).values
        low, high = values.quantile(0.16, dim=-1), values.quantile(0.84, dim=-1)
        self.log_width[: self.bands] = (0.5 * (high - low)).clamp_min(0.05).log()

    def _fit(self, mean: Tensor) -> None:
        """Least squares of the mean image, round and in the middle."""
        free = torch.tensor([name not in ("v_1", "v_2", "column", "row") for name in self.names]).to(mean)
        u = torch.zeros(1, self.size).to(mean).requires_grad_()
        optimiser = torch.optim.Adam([u], lr=RATE)
        weight = 1 / mean.square().mean(-1, keepdim=True).clamp_min(TINY)
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = (weight * (self.flux(u * free)[0].flatten(1) - mean).square()).mean()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            self.location += self.log_width.exp() * (u * free)[0]

    def _flux(self, t: dict[str, Tensor]) -> Tensor:
        """Of every band, (…, C)."""
        none = torch.zeros_like(t["log_flux"])
        colours = torch.stack([t.get(f"colour_{band}", none) for band in range(self.bands)], -1)
        return (t["log_flux"][..., None] + colours).exp()

    def _round(self, t: dict[str, Tensor]) -> Tensor:
        """T_n of the elliptical profile, (R, 2 H, W + 1)."""
        k2 = (2 * t["log_radius"]).exp() * _elongated(*_ellipse(t["v_1"], t["v_2"]), *self._waves())
        if "index" in t:
            return sersic(self.law, k2, t["index"])
        return exponential(k2)


class PhysicsDecoder(nn.Module):
    """A disc, and what a network with a quarter of the channels and a fusion of both add to it.

    .. math:: f = P(u) + R(z) + C(P(u), R(z))

    with P the disc, R the network and C two convolutions, 0 before anything is learned. Inputs are z, then u.

    Arguments:
        latents: Number of inputs but u.
        nets: Of the network.
        profile: Of the disc.
        asinh: Whether that is the scale of the cells.
    """

    def __init__(self, latents: int, nets: Architecture, profile: Profile, *, asinh: bool) -> None:
        super().__init__()
        self.latents = latents
        self.disc = Disc(nets.shape, profile, asinh=asinh)
        channels = max(1, nets.channels // 4)
        quarter = Architecture(nets.kind, nets.shape, nets.functions, nets.hidden, channels)
        self.rest = quarter.decoder(latents)
        bands = self.disc.bands
        self.fusion = nn.Sequential(
            nn.Conv2d(2 * bands, channels, 3, padding=1), nn.SiLU(), nn.Conv2d(channels, bands, 3, padding=1)
        )
        for parameter in self.fusion[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> Tensor:
        """(R, latents + P) to (R, D)."""
        known, rest = self.disc(z[:, self.latents :]), self.rest(z[:, : self.latents])
        both = torch.cat([part.unflatten(1, (self.disc.bands, *self.disc.sides)) for part in (known, rest)], 1)
        # channels side by side: convolutions are quickest
        added = self.fusion(both.contiguous(memory_format=torch.channels_last))
        return known + rest + added.flatten(1)

    @torch.no_grad()
    def begin(self, offset: Tensor) -> None:
        """Take the outputs that are given for the typical disc before anything is learned."""
        self.rest.begin(offset - self.disc(torch.zeros(1, self.disc.size).to(offset))[0])


def _ellipse(v_1: Tensor, v_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, e cos 2θ and e sin 2θ; with slopes at e = 0 too."""
    length = (v_1.square() + v_2.square() + TINY).sqrt()
    e = length.tanh()
    return 1 - e, v_1 * e / length, v_2 * e / length


def _ellipse_slopes(v_1: Tensor, v_2: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Slopes of these three by v_1 and by v_2."""
    length = (v_1.square() + v_2.square() + TINY).sqrt()
    e = length.tanh()
    steep, ratio = 1 - e.square(), e / length
    found = {}
    for name, v in (("v_1", v_1), ("v_2", v_2)):
        by_ratio = (steep - ratio) * v / length.square()
        one, other = v_1 * by_ratio, v_2 * by_ratio
        slopes = (one + ratio, other) if name == "v_1" else (one, other + ratio)
        found[name] = (-steep * v / length, *slopes)
    return found


def _elongated(q: Tensor, first: Tensor, second: Tensor, total: Tensor, stretched: Tensor, crossed: Tensor) -> Tensor:
    """k² in axes of the ellipse, its major axis of unit length."""
    turned = first * stretched + second * crossed
    return (0.5 * (1 + q.square()) * total + 0.5 * (1 + q) * turned).clamp_min(0)
