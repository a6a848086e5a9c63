"""The denoising tree of a picture as SVG: frames on their branches, what is shared in one colour."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from ..figures.style import INK, PERSONAL, PUBLIC

if TYPE_CHECKING:
    from PIL.Image import Image

    from .session import Picture

WIDTH, ROW, THUMB, FINAL = 1000, 118, 54, 104  # pixels of the drawing
LEFT, RIGHT = 34, 800  # where the first update begins and the last one ends
MUTED = "#6a727b"


def frames_shown(picture: Picture, most: int = 7) -> list[int]:
    """Numbers of updates whose images fit on the branches, about `most`; the final one is drawn large instead."""
    steps, handover = picture.controls.num_inference_steps, picture.controls.common_step
    spread = [round((i + 1) * steps / (most + 1)) for i in range(most)]
    room = 0.62 * steps / (most + 1)  # a fork needs space before the first personal frame
    return sorted({u for u in spread if 0 < u < steps and not handover < u < handover + room})


def svg(picture: Picture, with_frames: bool = True) -> str:
    """The tree of a picture; without frames their places and those of the scores stay empty, which takes no time."""
    controls, users = picture.controls, len(picture.images)
    height = ROW * users + 46
    fork, middle = _x(picture, controls.common_step), ROW * users / 2
    parts = [_axis(picture, height)]
    rows = [ROW * (user + 0.5) for user in range(users)]
    for y in rows:
        bend = fork + min(46, max(18, (RIGHT - fork) / 3))
        curve = f"M{fork} {middle} C{bend} {middle} {fork + 6} {y} {bend} {y} H{RIGHT + 8}"
        parts.append(f'<path d="{curve}" fill="none" stroke="{PERSONAL}" stroke-width="4"/>')
    if controls.common_step:
        parts.append(f'<path d="M{LEFT} {middle} H{fork}" stroke="{PUBLIC}" stroke-width="9" stroke-linecap="round"/>')
        label = f"“{_text(controls.public_prompt, 44)}” shared by {users}" if users > 1 else controls.public_prompt
        parts.append(_label(LEFT - 8, middle + THUMB / 2 + 18, label, PUBLIC))
    for updates in frames_shown(picture):
        if updates <= controls.common_step:
            shared = picture.shared_frame(updates) if with_frames else None
            parts.append(_image(shared, _x(picture, updates), middle, THUMB, PUBLIC))
        else:
            frames = picture.frames(updates) if with_frames else [None] * users
            for y, image in zip(rows, frames, strict=True):
                parts.append(_image(image, _x(picture, updates), y, THUMB, PERSONAL))
    parts.append(f'<circle cx="{fork}" cy="{middle}" r="6.5" fill="white" stroke="{INK}" stroke-width="2.5"/>')
    for user, (y, image) in enumerate(zip(rows, picture.images, strict=True)):
        parts.append(_image(image, RIGHT + 8 + FINAL / 2, y, FINAL, PERSONAL))
        prompt = _text(controls.personal_prompts[user], 74)
        parts.append(_label(RIGHT - 4, y - THUMB / 2 - 10, prompt, INK, "end"))
        if with_frames and picture.clip is not None:
            x = RIGHT + FINAL + 24
            parts.append(_label(x, y - 2, f"{picture.clip[user]:.2f}", INK, size=20))
            parts.append(_label(x, y + 16, "CLIP", MUTED, size=12))
    return (
        f'<svg class="hl-tree" viewBox="0 0 {WIDTH} {height}" width="100%" role="img" '
        f'style="max-width:{WIDTH}px;font-family:system-ui,sans-serif" '
        f'aria-label="denoising tree">{"".join(parts)}</svg>'
    )


def data_uri(image: Image) -> str:
    """An image as a PNG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _x(picture: Picture, updates: int) -> float:
    return round(LEFT + (RIGHT - LEFT) * updates / picture.controls.num_inference_steps, 1)


def _axis(picture: Picture, height: float) -> str:
    steps, handover = picture.controls.num_inference_steps, picture.controls.common_step
    y = height - 24
    ticks = sorted({0, handover, steps, *range(0, steps + 1, max(1, round(steps / 7)))})
    room = steps / 22  # labels do not run into each other
    parts = [f'<path d="M{LEFT} {y} H{RIGHT}" stroke="#c9ced4"/>']
    for tick in ticks:
        own = tick in (0, handover, steps)
        if own or all(abs(tick - other) > room for other in (0, handover, steps)):
            weight = ' font-weight="600"' if tick == handover else ""
            x = _x(picture, tick)
            parts.append(f'<path d="M{x} {y - 3} v6" stroke="#9aa1a9"/>')
            parts.append(
                f'<text x="{x}" y="{y + 17}" font-size="12" text-anchor="middle" fill="{INK}"{weight}>{tick}</text>'
            )
    sigma = f"noise level {picture.sigmas[handover]:.2f}"
    x = _x(picture, handover)
    side, anchor = (x + 8, "start") if handover < steps * 0.7 else (x - 8, "end")
    parts.append(_label(side, y - 7, f"handover, {sigma}", MUTED, anchor, 12))
    parts.append(_label(RIGHT + 14, y + 4, "updates made", MUTED, size=12))
    return "".join(parts)


def _image(image: Image | None, x: float, y: float, size: float, colour: str) -> str:
    place = f'x="{x - size / 2}" y="{y - size / 2}" width="{size}" height="{size}"'
    inside = f'<image href="{data_uri(image)}" {place}/>' if image is not None else ""
    fill = "#f2f3f5" if image is None else "none"
    return f'{inside}<rect {place} fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _label(x: float, y: float, text: str, colour: str, anchor: str = "start", size: float = 13.5) -> str:
    # A white rim keeps text readable where it crosses a branch.
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" stroke="white" '
        f'stroke-width="3" paint-order="stroke">{html.escape(text)}</text>'
    )


def _text(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
