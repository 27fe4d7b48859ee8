"""The lines, numbers and titles around a map of cells."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from tenuto.report.svg import Attributes, element, ticks

__all__ = ["Grid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """``columns`` by ``rows`` cells of ``width`` by ``height``, whose upper left corner is at ``left`` and ``top``."""

    columns: int
    rows: int
    left: float
    top: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.rows * self.height

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.columns * self.width

    def gaps(self) -> list[Markup]:
        """Thin lines between cells."""
        across = "".join(
            f"M{self.left + i * self.width:.2f} {self.top}V{self.bottom:.2f}" for i in range(1, self.columns)
        )
        down = "".join(f"M{self.left} {self.top + i * self.height:.2f}H{self.right:.2f}" for i in range(1, self.rows))
        return [element("path", {"class": "gap", "d": across + down})] if across + down else []

    def column_numbers(self, about: int = 8) -> list[Markup]:
        """Numbers below the columns, counted from 0."""
        middle = self.width / 2
        return [
            self.below(self.left + n * self.width + middle, str(n))
            for n in sorted({int(t) for t in ticks(0, self.columns - 1, about)})
        ]

    def below(self, x: float, text: str) -> Markup:
        """A number below the map."""
        place: Attributes = {"class": "tick", "x": x, "y": self.bottom + 13, "text-anchor": "middle"}
        return element("text", place, text)

    def row_numbers(self) -> list[Markup]:
        """Numbers left of the rows, counted from 0."""
        about = max(1, min(6, int(self.rows * self.height / 16)))
        parts = []
        for row in sorted({int(t) for t in ticks(0, self.rows - 1, about)}):
            y = self.top + (row + 0.5) * self.height + 4
            place: Attributes = {"class": "tick", "x": self.left - 5, "y": y, "text-anchor": "end"}
            parts.append(element("text", place, str(row)))
        return parts

    def column_title(self, text: str) -> Markup:
        """What the columns are."""
        place: Attributes = {"x": (self.left + self.right) / 2, "y": self.bottom + 30}
        return element("text", {"class": "axis", "text-anchor": "middle", **place}, text)

    def row_title(self, text: str) -> Markup:
        """What the rows are."""
        turned = f"translate(10 {(self.top + self.bottom) / 2:.0f}) rotate(-90)"
        return element("text", {"class": "axis", "text-anchor": "middle", "transform": turned}, text)
