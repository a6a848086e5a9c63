"""The widgets without a browser: what they say, what they show, and that a copy of a move is a move."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import threading
import time

import pytest
from PIL import Image

from hybridlib.explorer import app
from hybridlib.explorer.app import explore
from hybridlib.explorer.controls import STRENGTHS
from hybridlib.explorer.hybrid_panel import PERSONAL_PROMPTS, HybridPanel
from hybridlib.explorer.later import Later
from hybridlib.explorer.pieces import completions
from hybridlib.explorer.session import Session
from hybridlib.explorer.tree import frames_shown


@pytest.fixture
def panel(mini):
    made = HybridPanel(Session(mini), "mini-sd3", None)
    made.steps.value = 6  # quick
    return made


def pictures(panel):
    return re.findall(r'<image href="(data:image/png;base64,[^"]+)"', panel.tree.value)


def test_the_tree_shows_the_images_of_the_picture(panel):
    shown = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in pictures(panel)]
    final = [image.tobytes() for image in panel.picture.images]
    assert [image.tobytes() for image in shown[-3:]] == final
    updates = frames_shown(panel.picture)
    shared = sum(u <= panel.picture.controls.common_step for u in updates)
    assert len(shown) == shared + 3 * (len(updates) - shared) + 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("common", 3), ("public_scale", 6.0), ("scale", 3.0), ("steps", 8), ("shift", 2.0), ("seed", 5)],
)
def test_a_moved_slider_changes_picture_and_snippet(panel, name, value):
    before, code = pictures(panel)[-3:], panel.code.value
    getattr(panel, name).value = value
    assert pictures(panel)[-3:] != before
    assert panel.code.value != code


@pytest.mark.slow
def test_the_handover_stays_at_its_share_when_steps_change(panel):
    panel.steps.value, panel.common.value = 20, 10
    panel.steps.value = 40
    assert (panel.common.value, panel.common.max) == (20, 39)
    panel.steps.value = 4
    assert (panel.common.value, panel.common.max) == (2, 3)


@pytest.mark.slow
def test_a_codec_offers_its_own_strengths(panel):
    for family, strengths in STRENGTHS.items():
        panel.codec.value = family
        assert [value for _, value in panel.strength.options] == list(strengths)
        assert panel.message.value == ""
    assert "message to each user" in panel.facts.value
    panel.codec.value = "none"
    assert panel.strength.disabled
    assert panel.picture.controls.codec is None


def test_unknown_words_and_empty_prompts_are_said_in_the_widget(panel):
    last = panel.tree.value
    panel.users[1].value = "a small yellow dragon"
    assert "The model does not know &#x27;dragon&#x27;" in panel.message.value
    assert panel.tree.value == last
    panel.users[1].value = " "
    assert "The prompt of user 2 is empty" in panel.message.value
    panel.users[1].value = PERSONAL_PROMPTS[1]
    assert panel.message.value == ""
    assert panel.picture is not None


@pytest.mark.slow
def test_users_come_and_go(panel):
    panel._add.click()
    assert len(panel.picture.images) == 4
    for _ in range(2):
        panel._add.click()
    assert panel._add.disabled
    for count in (5, 4, 3, 2, 1):
        panel._rows.children[0].children[1].click()
        assert len(panel.picture.images) == count
    assert panel._rows.children[0].children[1].disabled


def test_words_are_offered_while_they_are_typed(panel):
    assert completions("a large r", ["red", "ring", "right", "blue"]) == [
        "a large red",
        "a large ring",
        "a large right",
    ]
    panel.public.value = "a cir"
    assert panel.public.options == ("a circle",)


def test_what_cannot_be_loaded_is_one_sentence_in_the_widget(tmp_path):
    for model, sentence in ((str(tmp_path), "holds no model_index.json"), ("mini-sd4", "no miniature model")):
        shown = explore(model).tabs.children[0].value
        assert sentence in shown
        assert shown.count("hl-error") == 1
        assert "Traceback" not in shown


@pytest.mark.slow
def test_a_page_without_a_kernel_gets_a_picture(mini, monkeypatch):
    monkeypatch.setattr(app, "open_session", lambda *_: Session(mini))
    monkeypatch.setattr(app, "_curves", None)
    explorer = explore()
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == "Explorer('mini-sd3')"
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width > 500


@pytest.mark.slow
def test_the_edge_is_played_when_its_tab_is_opened(mini, monkeypatch):
    monkeypatch.setattr(app, "open_session", lambda *_: Session(mini))
    monkeypatch.setattr(app, "_curves", None)
    explorer = explore()
    assert explorer.edge.episode is None
    explorer.tabs.selected_index = 1
    first = explorer.edge.charts.value
    assert "above the proven bound" in explorer.edge.facts.value
    explorer.edge.policy.value = "size split"
    assert explorer.edge.charts.value != first


def test_a_dragged_slider_is_followed_not_replayed():
    done = []

    async def drag():
        later = Later(0.01)
        for place in range(20):
            later.do([lambda place=place: done.append(place), lambda: done.append("frames")])
        await asyncio.sleep(0.2)

    asyncio.run(drag())
    assert done == [19, "frames"]


def test_a_change_told_in_another_thread_is_drawn_last_and_in_the_first_thread():
    """As JupyterLab does it: a text typed while an older picture is being drawn."""
    done, begun = [], threading.Event()

    def slow():
        begun.set()
        time.sleep(0.1)
        done.append(("old", threading.current_thread()))

    def drawn(name):
        return lambda: done.append((name, threading.current_thread()))

    def type_text(later):
        begun.wait(5)
        later.do([drawn("new"), drawn("its frames")])

    async def both():
        later = Later(0.001)
        later.do([slow, drawn("old frames")])
        typing = threading.Thread(target=type_text, args=(later,))
        typing.start()
        await asyncio.sleep(0.4)
        typing.join()

    asyncio.run(both())
    assert done == [(name, threading.main_thread()) for name in ("old", "new", "its frames")]
