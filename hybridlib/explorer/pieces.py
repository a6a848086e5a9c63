"""Small parts of the widgets: sliders alike, sentences, cards of numbers, the style of it all."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from ..figures.style import PERSONAL, PUBLIC

STYLE = f"""<style>
.hl-out {{ background: #fff; color: #22262b; border-radius: 6px; padding: 4px 10px }}
.hl-out .hl-tree {{ display: block }}
.hl-error {{ color: #8c1d18; background: #fdecea; border-left: 4px solid #b3261e; padding: 6px 10px; line-height: 1.4 }}
.hl-cards {{ display: flex; flex-wrap: wrap; gap: 10px; margin: 2px 0 6px; line-height: 1.35 }}
.hl-cards > div {{ flex: 1 1 140px; border: 1px solid #d9dde1; border-radius: 6px; padding: 6px 10px;
  font: 12.5px system-ui, sans-serif; color: #6a727b }}
.hl-cards b {{ display: block; font-size: 17px; color: #22262b }}
.hl-bar {{ height: 6px; background: #e3e6e9; border-radius: 3px; margin: 4px 0 }}
.hl-bar > i {{ display: block; height: 6px; background: {PUBLIC}; border-radius: 3px }}
.hl-head {{ font: 600 12.5px system-ui, sans-serif; margin: 6px 0 0; line-height: 1.5 }}
.hl-note {{ font: 12px system-ui, sans-serif; color: #6a727b; line-height: 1.45 }}
.hl-code summary {{ cursor: pointer; font: 600 13px system-ui, sans-serif; padding: 2px 0 }}
.hl-code pre {{ background: #f6f7f8; color: #22262b; padding: 10px; overflow: auto; font-size: 12.5px;
  line-height: 1.4 }}
.hl-code button {{ float: right; font: 12.5px system-ui, sans-serif; padding: 3px 10px; cursor: pointer }}
.hl-public input {{ border-left: 4px solid {PUBLIC} !important }}
.hl-personal input {{ border-left: 4px solid {PERSONAL} !important }}
</style>"""

_COPY = (
    "const pre = this.parentElement.querySelector('pre');"
    "if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent);"
    "else getSelection().selectAllChildren(pre);"
    "this.textContent = navigator.clipboard ? 'copied' : 'selected';"
)
WIDE = widgets.Layout(width="100%", margin="1px 0")


def slider(kind: type[Any], label: str, tooltip: str, **options: Any) -> Any:
    """A slider with its label beside it, as wide as its column; it tells every move, not only the last."""
    return kind(
        description=label, tooltip=tooltip, style={"description_width": "96px"}, layout=WIDE, readout=True, **options
    )


def heading(text: str) -> widgets.HTML:
    """A line above a group of controls."""
    return widgets.HTML(f'<div class="hl-head">{html.escape(text)}</div>')


class Chart(widgets.Image):
    """A PNG that takes no place before there is one."""

    def __init__(self) -> None:
        super().__init__(format="png", layout=widgets.Layout(max_width="100%", object_fit="contain", display="none"))

    def show(self, png: bytes) -> None:
        """Show this PNG."""
        self.value = png
        self.layout.display = ""


def error(sentence: str) -> str:
    """A sentence where the user looks."""
    return f'<div class="hl-error" role="alert">{html.escape(sentence)}</div>'


def cards(entries: Sequence[tuple[str, str, float | None]]) -> str:
    """Numbers with what they mean: (number, words, share of a bar or None)."""
    parts = []
    for number, words, share in entries:
        bar = "" if share is None else f'<div class="hl-bar"><i style="width:{100 * share:.0f}%"></i></div>'
        parts.append(f"<div><b>{html.escape(number)}</b>{bar}{html.escape(words)}</div>")
    return f'<div class="hl-cards">{"".join(parts)}</div>'


def code(text: str) -> str:
    """A folded snippet with a button that copies it."""
    button = f'<button onclick="{html.escape(_COPY)}">copy</button>'
    return (
        '<details class="hl-code"><summary>Copy as code: the same images, bit for bit</summary>'
        f"{button}<pre>{html.escape(text)}</pre></details>"
    )


def completions(typed: str, vocabulary: Sequence[str]) -> list[str]:
    """What a text with its last word finished could be."""
    head, _, last = typed.rpartition(" ")
    stem = f"{head} " if head else ""
    return [stem + word for word in vocabulary if word.startswith(last.lower()) and word != last]
