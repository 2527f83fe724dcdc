"""Where a part sticks out: the place that breaks off or bends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly3d.data.synthetic.surface import DefectError, Surface


@dataclass(frozen=True)
class Protrusion:
    """The points beyond a plane that hang together with the outermost one.

    `axis` (3,) points outwards, `height` (N,) is every point's coordinate along it, `base` the plane's,
    `index` (K,) are the points beyond.
    """

    axis: np.ndarray
    height: np.ndarray
    base: float
    index: np.ndarray

    @property
    def length(self) -> float:
        """From the plane to the tip."""
        return float(self.height[self.index].max() - self.base)


def choose_protrusion(surface: Surface, share: float, rng: np.random.Generator) -> Protrusion:
    """A protruding part with about `share` of the surface, drawn from the directions where it reaches out far.

    A direction is the better, the longer the part that a plane across it has to cut off for the same area.
    """
    sample = surface.points[rng.integers(len(surface.points), size=2000)]
    centred = sample - sample.mean(axis=0)
    principal = np.linalg.svd(centred, full_matrices=False)[2]
    axes = rng.normal(size=(40, 3))
    axes = np.concatenate([axes / np.linalg.norm(axes, axis=1, keepdims=True), principal, -principal])
    height = centred @ axes.T
    reach = height.max(axis=0) - np.quantile(height, 1 - share, axis=0)
    long = np.argsort(reach)[-len(axes) // 3 :]
    axis = axes[rng.choice(long, p=reach[long] / reach[long].sum())]

    along = surface.points @ axis
    tip = int(along.argmax())
    beyond = share
    for _ in range(4):
        base = float(np.quantile(along, 1 - min(beyond, 0.5)))
        index = surface.connected(np.flatnonzero(along > base), tip)
        if len(index) > 0.7 * share * len(along) or beyond >= 0.5:
            break
        # The plane cuts several parts at once: lower it until the one at the tip is large enough.
        beyond = min(beyond * 1.7, 0.5)
    if not 0.3 * share < len(index) / len(along) < 1.6 * share:
        raise DefectError("nothing of the wanted size sticks out")
    return Protrusion(axis, along, base, index)
