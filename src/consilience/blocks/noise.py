"""Randomness as a pure function of (seed, object, member, stream), the same however a table is cut."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilience.typing import FloatArray, StringArray

__all__ = ["BLOCK", "Noise"]

BLOCK = 64  # draws made by one generator; the first n draws do not depend on how many follow


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard normals keyed by seed, canonical id, ensemble member and stream, for a window of draws.

    Arguments:
        seed: The caller's seed.
        ids: Canonical ids of the objects, shape (B,).
        member: Ensemble member.
        first: Number of the first draw of the window.

    Example:
        >>> import numpy as np
        >>> both = Noise(0, np.array(["a", "b"])).normal("latent", 3, (2,))
        >>> alone = Noise(0, np.array(["b"])).normal("latent", 3, (2,))
        >>> both.shape, bool((both[:, 1] == alone[:, 0]).all())
        (torch.Size([3, 2, 2]), True)
    """

    seed: int
    ids: StringArray
    member: int = 0
    first: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def normal(self, stream: str, n: int, shape: Sequence[int]) -> Tensor:
        """Standard normals of shape (n, B, *shape), drawn on the CPU in float64, then cast and moved."""
        return self._collect(stream, n, shape, lambda generator, size: generator.standard_normal(size))

    def uniform(self, stream: str, n: int, shape: Sequence[int]) -> Tensor:
        """Uniforms on [0, 1) of shape (n, B, *shape)."""
        return self._collect(stream, n, shape, lambda generator, size: generator.random(size))

    def _collect(
        self,
        stream: str,
        n: int,
        shape: Sequence[int],
        draw: Callable[[np.random.Generator, tuple[int, ...]], FloatArray],
    ) -> Tensor:
        out = np.empty((n, len(self.ids), *shape))
        done = 0
        while done < n:
            block, skip = divmod(self.first + done, BLOCK)
            take = min(BLOCK - skip, n - done)
            for row, name in enumerate(self.ids):
                generator = self._generator(str(name), stream, block)
                out[done : done + take, row] = draw(generator, (BLOCK, *shape))[skip : skip + take]
            done += take
        return torch.as_tensor(out).to(device=self.device, dtype=self.dtype)

    def _generator(self, name: str, stream: str, block: int) -> np.random.Generator:
        text = f"{self.seed}\x1f{name}\x1f{self.member}\x1f{stream}\x1f{block}".encode()
        key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))
