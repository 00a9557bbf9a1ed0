"""How results look in a notebook: small pieces of HTML, in which every text is escaped.

Colours and fonts are the notebook's own, light or dark; where styles are taken away, as GitHub
does, the figures stay.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from html import escape

from deit_zoo.errors import redact

BAR_WIDTH = 140  # pixels
BAR = "#0072B2"  # Okabe and Ito's blue, which both light and dark pages show


class Html(str):
    """A text that is HTML already; any other is escaped where it is shown."""

    __slots__ = ()


def text(value: str) -> Html:
    """A name, a label or a path of others as a part of a page, whatever it holds; no secrets, for
    a notebook keeps what it shows."""
    from deit_zoo.terminal import one_line

    return value if isinstance(value, Html) else Html(escape(one_line(redact(value))))


def table(
    rows: Iterable[Sequence[str]],
    *,
    heading: Sequence[str] = (),
    right: Collection[int] = (),
    notes: Iterable[str] = (),
) -> str:
    """Rows of cells; without a heading the first cell of each is its label."""
    head = f"<thead><tr>{_cells(heading, right, 'th')}</tr></thead>" if heading else ""
    body = "".join(
        f"<tr>{_cells(row, right)}</tr>"
        if heading
        else f"<tr>{_cells(row[:1], (), 'th')}{_cells(row[1:])}</tr>"
        for row in rows
    )
    small = "".join(f"<div><small>{text(note)}</small></div>" for note in notes)
    return f"<div><table>{head}<tbody>{body}</tbody></table>{small}</div>"


def bar(share: float) -> Html:
    """A bar whose length is a share from 0 to 1."""
    width = round(BAR_WIDTH * min(max(share, 0.0), 1.0))
    return Html(
        f'<div style="width:{BAR_WIDTH}px;height:0.8em;background:rgba(128,128,128,0.25)">'
        f'<div style="width:{width}px;height:100%;background:{BAR}"></div></div>'
    )


def picture(data: bytes, kind: str, *, description: str, width: int | None = None) -> Html:
    """A picture of some kilobytes inside the page; `kind` is jpeg or png, `width` in pixels."""
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    wide = "" if width is None else f' width="{width}"'
    return Html(f'<img src="{source}" alt="{text(description)}"{wide}>')


def _cells(cells: Sequence[str], right: Collection[int] = (), kind: str = "td") -> str:
    align = ["right" if number in right else "left" for number in range(len(cells))]
    return "".join(
        f'<{kind} style="text-align:{side}">{text(cell)}</{kind}>'
        for side, cell in zip(align, cells, strict=True)
    )
