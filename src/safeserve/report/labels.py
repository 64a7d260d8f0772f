"""Names beside points: where each stands so that none prints over another. The same input gives the same places."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = (
    (1.0, -1.0), (1.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (-1.0, 0.0), (-1.0, 1.0), (0.0, -1.0), (0.0, 1.0),
    (1.0, -0.5), (1.0, 0.5), (-1.0, -0.5), (-1.0, 0.5),
)  # fmt: skip
"""Where a name is tried, right and upwards first."""
_DISTANCES = (7.0, 12.0, 19.0, 28.0, 40.0, 55.0, 75.0, 100.0, 130.0)
_CROSSING = 15.0
"""What crossing a line costs a place, in pixels of distance; a name that its own line crosses costs twice that."""
_NEAR = 14.0
"""Up to here a name needs no line to its point."""
_EM, _CAPITAL, _WIDE = 0.62, 0.76, 1.0
"""Width of a letter by the size of its font, in a wide font (DejaVu Sans): what fits by it fits on any screen."""

Spot = tuple[float, float]
Line = tuple[Spot, Spot]


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def overlaps(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, area: Box) -> bool:
        return (
            self.left >= area.left and self.top >= area.top and self.right <= area.right and self.bottom <= area.bottom
        )

    def nearest(self, x: float, y: float) -> Spot:
        """The point of the box that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def meets(self, line: Line) -> bool:
        """Whether any part of the line lies in the box."""
        (x, y), (x2, y2) = line
        enter, leave = 0.0, 1.0
        sides = ((x2 - x, x, self.left, self.right), (y2 - y, y, self.top, self.bottom))
        for along, start, low, high in sides:  # Liang and Barsky: where the line is between the two sides
            if along == 0:
                if not low < start < high:
                    return False
                continue
            first, last = sorted(((low - start) / along, (high - start) / along))
            enter, leave = max(enter, first), min(leave, last)
        return enter < leave


@dataclass(frozen=True)
class Name:
    """A name that is to stand near the point (x, y), and the room that it takes."""

    x: float
    y: float
    width: float
    height: float


def text_width(text: str, size: float) -> float:
    """How wide a text is at most in a usual sans-serif font of that size."""

    def width(char: str) -> float:
        if char in "mwMW@%" or unicodedata.east_asian_width(char) in "WF":
            return _WIDE
        return _CAPITAL if char.isupper() else _EM

    return size * sum(map(width, text))


def place(names: Sequence[Name], area: Box, marks: Sequence[Box] = (), lines: Sequence[Line] = ()) -> list[Box | None]:
    """A box for every name, in order: the first one has the first choice.

    Boxes lie inside ``area`` and never overlap each other. They cover none of ``marks`` as long as there is a place
    that does not, and rather stand a little further off than cross one of ``lines`` or another name's line.

    Returns:
        None for a name that finds no room at all.
    """
    placed: list[Box] = []
    drawn = list(lines)
    found: list[Box | None] = []
    for name in names:
        box = _beside(name, area, placed, marks, drawn)
        box = box or _anywhere(name, area, (*placed, *marks)) or _anywhere(name, area, placed)
        found.append(box)
        if box:
            placed.append(box)
            if end := leader(box, name.x, name.y):
                drawn.append(((name.x, name.y), end))
    return found


def leader(box: Box, x: float, y: float) -> Spot | None:
    """Where a line from the point (x, y) to its moved name ends; None where the name stands beside its point."""
    end = box.nearest(x, y)
    return end if _distance(end, x, y) > _NEAR else None


def _beside(name: Name, area: Box, names: Sequence[Box], marks: Sequence[Box], lines: Sequence[Line]) -> Box | None:
    """The cheapest free place around the point."""
    best: tuple[float, Box] | None = None
    for far in _DISTANCES:
        if best and best[0] <= far:  # every place from here on is further than the best one costs
            break
        for rank, (across, down) in enumerate(_DIRECTIONS):
            middle = name.x + across * (name.width / 2 + far)
            level = name.y + down * (name.height / 2 + far)
            box = Box(middle - name.width / 2, level - name.height / 2, name.width, name.height)
            if not box.inside(area) or any(box.overlaps(other) for other in (*names, *marks)):
                continue
            crossed = sum(box.meets(line) for line in lines)
            if end := leader(box, name.x, name.y):
                crossed += 2 * sum(other.meets(((name.x, name.y), end)) for other in names)
            cost = far + 0.1 * rank + _CROSSING * crossed
            if best is None or cost < best[0]:
                best = (cost, box)
    return best[1] if best else None


def _anywhere(name: Name, area: Box, taken: Sequence[Box]) -> Box | None:
    """The nearest free place of a lattice over the whole area, with the edges of what is there already."""
    if name.width > area.width or name.height > area.height:
        return None
    near = Box(area.left, area.top, area.width - name.width, area.height - name.height)
    lefts = {near.left, near.right} | {other.right for other in taken} | {other.left - name.width for other in taken}
    tops = {near.top, near.bottom} | {other.bottom for other in taken} | {other.top - name.height for other in taken}
    # A free place can be pushed left and up until it meets an edge, so these are enough to find one if there is one.
    places = (
        Box(left, top, name.width, name.height)
        for left in sorted(lefts)
        for top in sorted(tops)
        if near.left <= left <= near.right and near.top <= top <= near.bottom
    )
    free = [box for box in places if box.inside(area) and not any(box.overlaps(other) for other in taken)]
    return min(free, key=lambda box: (_distance(box.nearest(name.x, name.y), name.x, name.y), box.top), default=None)


def _distance(end: Spot, x: float, y: float) -> float:
    return float(((end[0] - x) ** 2 + (end[1] - y) ** 2) ** 0.5)
