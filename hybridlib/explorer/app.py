"""`explore()`: both tabs in one widget, with a still picture for pages that cannot run it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from . import pieces
from .edge_panel import EdgePanel
from .hybrid_panel import HybridPanel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from .curves import Curves
    from .session import Picture, Session

TABS = ("Hybrid inference", "The edge")


class Explorer(widgets.VBox):
    """The explorer as a widget. What cannot be loaded is said in it, in one sentence.

    Attributes:
        hybrid: the first tab, None where the model could not be loaded.
        edge: the second tab.
    """

    def __init__(self, model: str = "mini-sd3", clip_model: str | None = None, device: str | None = None) -> None:
        self.model = model
        self.hybrid: HybridPanel | None = None
        try:
            session = open_session(model, clip_model, device)
            self.hybrid = HybridPanel(session, model, _curves if session.vocabulary is not None else None)
            first = self.hybrid.widget
        except (ValueError, OSError) as failure:
            first = widgets.HTML(pieces.error(str(failure).splitlines()[0]))
        self.edge = EdgePanel()
        self.tabs = widgets.Tab([first, self.edge.widget], titles=TABS)
        self.tabs.observe(self._on_tab, "selected_index")
        super().__init__([widgets.HTML(pieces.STYLE), self.tabs])
        if self.hybrid is not None:
            self.hybrid._on_change()

    def __repr__(self) -> str:
        return f"Explorer({self.model!r})"

    def _on_tab(self, change: dict[str, Any]) -> None:
        if change["new"] == 1:
            self.edge.start()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it a picture of what it shows at first, for readers without a kernel."""
        bundle = super()._repr_mimebundle_(**options) | {"text/plain": repr(self)}
        if self.hybrid is not None and self.hybrid.picture is not None:
            bundle["image/png"] = base64.b64encode(still(self.hybrid.picture)).decode()
        return bundle


def explore(model: str = "mini-sd3", clip_model: str | None = None, device: str | None = None) -> Explorer:
    """Hybrid inference and the edge, to touch.

    Args:
        model: as in `models.load`: "mini-sd3", or the folder of a real SD3.
        clip_model: as in `ClipAlignment.load`; "mini-clip" beside a miniature and none beside another model, by
            default.
        device: as in `models.load`.
    """
    return Explorer(model, clip_model, device)


def open_session(model: str, clip_model: str | None = None, device: str | None = None) -> Session:
    """The models behind the first tab.

    Raises:
        ValueError: one sentence, if a model is missing or of another family.
    """
    from ..denoising import models
    from ..denoising.pipelines import HybridStableDiffusion3Pipeline
    from ..metrics.alignment import ClipAlignment
    from .session import Session

    pipeline = models.load(model, device)
    if not isinstance(pipeline, HybridStableDiffusion3Pipeline):
        raise ValueError(f"the explorer opens Stable Diffusion 3, {model!r} is a {type(pipeline).__name__}")
    session = Session(pipeline)
    clip_model = clip_model or ("mini-clip" if session.vocabulary is not None else None)
    session.clip = ClipAlignment.load(clip_model, device) if clip_model else None
    return session


def still(picture: Picture) -> bytes:
    """The picture as a filmstrip, PNG."""
    from ..figures import filmstrip, use_house_style

    use_house_style()
    controls, steps = picture.controls, picture.controls.num_inference_steps
    shown = sorted({*range(steps // 7, steps, max(1, steps // 7)), steps})
    strips: dict[str, Sequence[Image]] = {}
    for user, prompt in enumerate(controls.personal_prompts):
        frames = [picture.shared_frame(u) if u <= controls.common_step else picture.frames(u)[user] for u in shown]
        strips[f"{user + 1}. {prompt}"] = frames
    handovers = [controls.common_step] * len(strips)
    figure = filmstrip(strips, shown, handovers, f"“{controls.public_prompt}”, shared for {handovers[0]} updates")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=96)
    return buffer.getvalue()


def _curves() -> Curves:
    from ..metrics.similarity import SentenceSimilarity
    from .curves import Curves

    return Curves(SentenceSimilarity.load(device="cpu"))
