"""The first tab: prompts and sliders on the left; the tree, what it costs and where it lies on the right."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from . import pieces
from .charts import png, quality_and_rates
from .code import snippet
from .controls import MOST_USERS, NO_CODEC, STRENGTHS, Controls, codec_of
from .later import Later
from .tree import svg

if TYPE_CHECKING:
    from .curves import Curves
    from .session import Picture, Session

PUBLIC_PROMPT = "a circle"
PERSONAL_PROMPTS = (
    "a large red circle on grass at noon",
    "a small yellow circle on water at dusk",
    "a large blue circle on sand at night",
)


class HybridPanel:
    """Widgets around a `Session`; `widget` shows them, `picture` is what they show.

    Args:
        curves: makes the curves of full runs when they are first drawn; None where the model is none of the miniatures
            that they were measured on.
    """

    def __init__(self, session: Session, model: str, curves: Callable[[], Curves] | None) -> None:
        self.session, self.model, self._make_curves = session, model, curves
        self.picture: Picture | None = None
        self._curves: Curves | None = None
        self._later = Later()
        self._quiet = False
        self._build_prompts()
        self._build_sliders()
        self.message, self.tree, self.facts, self.code = (widgets.HTML(layout=pieces.WIDE) for _ in range(4))
        self.tree.add_class("hl-out")
        self.charts = pieces.Chart()
        self.charts_note = widgets.HTML(layout=pieces.WIDE)
        left = widgets.VBox(
            [
                pieces.heading("What the users have in common"),
                self.public,
                pieces.heading("What each user wants"),
                self._rows,
                self._add,
                self.negative,
                self.words,
                pieces.heading("How it is denoised"),
                *(self.common, self.public_scale, self.scale, self.steps, self.shift, self.seed),
                pieces.heading("What crosses the link at the handover"),
                *(self.codec, self.strength),
            ],
            layout=widgets.Layout(flex="0 0 330px", width="330px", padding="0 12px 0 0"),
        )
        right = widgets.VBox(
            [self.message, self.tree, self.facts, self.code, self.charts_note, self.charts],
            layout=widgets.Layout(flex="1 1 0", min_width="480px", overflow="hidden"),
        )
        self.widget = widgets.HBox([left, right], layout=widgets.Layout(width="100%"))
        self._show()

    # --- controls

    def _build_prompts(self) -> None:
        self._typed_at_once = self.session.vocabulary is not None  # a large model waits for Enter
        self.public = self._prompt(PUBLIC_PROMPT, "hl-public", "the public prompt, whose first steps all users share")
        self.users = [self._prompt(text, "hl-personal", "a personal prompt") for text in PERSONAL_PROMPTS]
        self._rows = widgets.VBox(layout=pieces.WIDE)
        self._add = widgets.Button(description="add a user", icon="plus", layout=widgets.Layout(width="120px"))
        self._add.on_click(lambda _: self._set_users([*self.users, self._copy_of_last()]))
        self.negative = self._prompt("", "hl-personal", "what no user wants; empty for nothing")
        self.negative.placeholder = "negative prompt, for all users (optional)"
        known = ""
        if self.session.vocabulary is not None:
            known = f'<div class="hl-note">Words it knows: {html.escape(" ".join(self.session.vocabulary))}</div>'
        self.words = widgets.HTML(known, layout=pieces.WIDE)
        self._place_users()

    def _prompt(self, text: str, kind: str, tooltip: str) -> widgets.Combobox:
        box = widgets.Combobox(
            value=text,
            tooltip=tooltip,
            placeholder=tooltip,
            ensure_option=False,
            continuous_update=self._typed_at_once,
            layout=pieces.WIDE,
        )
        box.add_class(kind)
        box.observe(self._on_typed, "value")
        return box

    def _copy_of_last(self) -> widgets.Combobox:
        return self._prompt(self.users[-1].value, "hl-personal", "a personal prompt")

    def _set_users(self, users: Sequence[widgets.Combobox]) -> None:
        gone = [box for box in self.users if box not in users]
        self.users = list(users)
        self._place_users()
        for box in gone:
            box.close()
        self._on_change()

    def _place_users(self) -> None:
        for row in self._rows.children:  # rows and their buttons are made anew; what is dropped must not stay in memory
            row.children[1].close()
            row.close()
        rows = []
        for box in self.users:
            drop = widgets.Button(
                icon="times",
                tooltip="remove this user",
                disabled=len(self.users) == 1,
                layout=widgets.Layout(width="34px"),
            )
            drop.on_click(lambda _, box=box: self._set_users([other for other in self.users if other is not box]))
            rows.append(widgets.HBox([box, drop], layout=pieces.WIDE))
        self._rows.children = rows
        self._add.disabled = len(self.users) >= MOST_USERS

    def _build_sliders(self) -> None:
        make, own = pieces.slider, self.session.own_shift
        self.common = make(
            widgets.IntSlider, "common step", "updates made under the public prompt", value=6, min=0, max=27
        )
        scales = {"min": 0.0, "max": 12.0, "step": 0.5, "readout_format": ".1f"}
        self.public_scale = make(
            widgets.FloatSlider, "public scale", "guidance scale of the shared steps", value=2.0, **scales
        )
        self.scale = make(
            widgets.FloatSlider, "personal scale", "guidance scale of each user's own steps", value=8.0, **scales
        )
        self.steps = make(widgets.IntSlider, "steps", "num_inference_steps", value=28, min=4, max=60)
        self.shift = make(
            widgets.FloatSlider,
            "shift",
            "of the noise schedule: large spends more steps on strong noise",
            value=own or 1.0,
            min=0.05,
            max=6.0,
            step=0.05,
            disabled=own is None,
        )
        self.seed = make(widgets.IntSlider, "seed", "of the initial noise that all users share", value=1, min=0, max=99)
        self.codec = widgets.Dropdown(
            description="codec",
            options=list(STRENGTHS),
            value=NO_CODEC,
            style={"description_width": "96px"},
            layout=pieces.WIDE,
        )
        self.strength = make(
            widgets.SelectionSlider, "strength", "quantisation step, or bits of min-max", options=[("-", 0)]
        )
        self.strength.disabled = True
        self.steps.observe(self._on_steps, "value")
        self.codec.observe(self._on_codec, "value")
        for control in (self.common, self.public_scale, self.scale, self.shift, self.seed, self.strength):
            control.observe(lambda _: self._on_change(), "value")

    def _on_typed(self, change: dict[str, Any]) -> None:
        if self.session.vocabulary is not None:
            change["owner"].options = pieces.completions(change["new"], self.session.vocabulary)
        self._on_change()

    def _on_steps(self, change: dict[str, Any]) -> None:
        self._quiet = True
        share = self.common.value / change["old"]  # the handover stays at about the same noise level
        self.common.max = max(change["new"] - 1, self.common.value)
        self.common.value = min(round(share * change["new"]), change["new"] - 1)
        self.common.max = change["new"] - 1
        self._quiet = False
        self._on_change()

    def _on_codec(self, change: dict[str, Any]) -> None:
        self._quiet = True
        strengths = STRENGTHS[change["new"]]
        unit = "{:g} bits" if change["new"].startswith("min-max") else "step {:g}"
        coded = change["new"] != NO_CODEC
        self.strength.options = [(unit.format(s), s) for s in strengths] if coded else [("-", 0)]
        self.strength.value = strengths[len(strengths) // 2]
        self.strength.disabled = not coded
        self._quiet = False
        self._on_change()

    def controls(self) -> Controls:
        """What the widgets say.

        Raises:
            ValueError: one sentence, if a prompt is empty.
        """
        own, shift = self.session.own_shift, round(self.shift.value, 4)
        return Controls(
            public_prompt=self.public.value.strip(),
            personal_prompts=tuple(box.value.strip() for box in self.users),
            common_step=self.common.value,
            public_guidance_scale=self.public_scale.value,
            guidance_scale=self.scale.value,
            negative_prompt=self.negative.value.strip(),
            num_inference_steps=self.steps.value,
            shift=None if own is None or shift == round(own, 4) else shift,
            seed=self.seed.value,
            codec=codec_of(self.codec.value, self.strength.value),
        )

    # --- pictures

    def _on_change(self) -> None:
        if not self._quiet:
            self._later.do([self._show, self._show_frames, self._announce_curves, self._show_curves])

    def _show(self) -> None:
        """The new images and their price, as soon as they are there."""
        try:
            picture = self.session.picture(self.controls())
        except ValueError as failure:
            self.picture, self.message.value = None, pieces.error(str(failure))
            return
        self.picture, self.message.value = picture, ""
        self.tree.value = svg(picture, with_frames=False)
        self.facts.value = pieces.cards(_facts(picture, with_score=False))

    def _show_frames(self) -> None:
        """Frames on the branches, scores, and the snippet."""
        if self.picture is not None:
            self.tree.value = svg(self.picture)
            self.facts.value = pieces.cards(_facts(self.picture))
            self.code.value = pieces.code(snippet(self.picture.controls, self.model, self.session))

    def _announce_curves(self) -> None:
        if self._curves is None and self._make_curves is not None:
            self.charts_note.value = '<div class="hl-note">Fitting the curves of the full runs, once ...</div>'

    def _show_curves(self) -> None:
        """Where the picture lies on what full runs measured."""
        if self.picture is None or self._make_curves is None:
            return
        if self._curves is None:
            self._curves = self._make_curves()
        quality = self._curves.quality(self.picture)
        rates = self._curves.rates(self.picture, self.session)
        self.charts.show(png(quality_and_rates(self.picture, quality, rates)))
        safe = min(curve.safe_step for curve in quality)
        self.charts_note.value = (
            f'<div class="hl-note">Measured on the miniature models. Blue: up to common step {safe} the planner '
            "promises 95 % of the alignment, on average over fresh prompts; single images scatter widely.</div>"
        )

    def finish(self) -> None:
        """Show frames and curves now, as a still needs them."""
        self._show_frames()
        self._show_curves()


def _facts(picture: Picture, with_score: bool = True) -> list[tuple[str, str, float | None]]:
    tree, alone = picture.cost.tree, picture.cost.one_at_a_time
    facts: list[tuple[str, str, float | None]] = [
        (f"{tree} NFE", f"denoiser evaluations; {alone} one user at a time: {1 - tree / alone:.0%} saved", tree / alone)
    ]
    message, state, half = picture.link
    if not message:
        facts.append(("0 bytes", "cross the link: nothing is shared, the seed is enough", 0.0))
    elif picture.controls.link_codec is None:
        facts.append((f"{state:,} bytes", f"state file to each user; {half:,} as bare 16-bit floats", None))
    else:
        facts.append(
            (f"{message:,} bytes", f"message to each user; 16-bit floats take {half:,}", min(1, message / half))
        )
    if picture.scorer is not None:
        clip = picture.clip if with_score else None
        score = "…" if clip is None else f"{np.mean(clip):.2f}"
        facts.append((score, "mean CLIP alignment of image and prompt (mini-clip)", None))
    facts.append((f"{picture.seconds:.2f} s", f"to draw, with {picture.computed} new NFE", None))
    return facts
