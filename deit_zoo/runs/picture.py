"""Pictures that matplotlib draws: any name may stand in them."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING
from warnings import catch_warnings, filterwarnings

from deit_zoo.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, of so many inches, whose parts keep clear of each other."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def drawable(name: str) -> str:
    """A name as it can be drawn: what is no sign, or not UTF-8, is spelled."""
    return one_line(name).encode("utf-8", "backslashreplace").decode()


def png_of(figure: Figure) -> bytes:
    """The picture as PNG; a dollar in it is a dollar, and begins no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    data = BytesIO()
    with catch_warnings():  # of signs that the font lacks; pages and tables have them
        filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(data, format="png", dpi=120)
    return data.getvalue()
