"""How figures look on the project's HTML pages, and a matplotlib figure as inline SVG.

Every series differs by line style or marker as well as by colour, so that figures survive a greyscale printer. Text
stays text (searchable, read aloud); the page's style sheet gives it the page's font.
"""

import io
import re
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY, PALE = "#1a1a1a", "#1f4e79", "#d9822b", "#767676", "#d4d4d4"
# (colour, line style, marker) of the first, second, ... series.
SERIES = (
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (INK, ":", "^"),
    (GREY, "-.", "D"),
    (BLUE, (0, (5, 1, 1, 1)), "v"),
    (ORANGE, (0, (1, 1)), "P"),
)
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}
WIDTH = 9.0


def to_svg(figure: Figure, title: str, marks: Mapping[str, str] | None = None) -> str:
    """The figure as an <svg> element: no XML prologue, no metadata, no ids but those it refers to itself.

    An artist whose gid is a key of `marks` is said by its text when a pointer rests on it; `data-mark` holds the key up
    to a "#", so that a script can find one thing in several figures.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for name, said in (marks or {}).items():
        mark = f'<g class="mark" data-mark="{_escaped(name.partition("#")[0])}"><title>{_escaped(said)}</title>'
        text = text.replace(f'<g id="{name}">', mark)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{_escaped(title)}">', text, count=1
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
