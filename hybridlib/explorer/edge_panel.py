"""The second tab: arrivals and a policy on the left; queues, delays and the bound on the right."""

from __future__ import annotations

import ipywidgets as widgets

from . import pieces
from .charts import episode_charts, png
from .edge import Edge, Episode, Play, policies
from .later import Later

_EXPLAINED = (
    "Twenty base stations, each with a server, send image tasks in 59 slots of one second; a policy says which server "
    "draws which image. The bound is proven: no policy, not even one that knows the future, has a lower mean delay."
)


class EdgePanel:
    """Widgets around an `Edge`; nothing is played before `start`."""

    def __init__(self) -> None:
        self.edge = Edge()
        self.episode: Episode | None = None
        self._later = Later()
        wide = {"style": {"description_width": "96px"}, "layout": pieces.WIDE}
        self.policy = widgets.Dropdown(description="policy", options=list(policies()), **wide)
        self.policy.value = "capacity-weighted random"
        self.busiest = pieces.slider(
            widgets.IntSlider, "busiest station", "most tasks of a station in a slot", value=50, min=5, max=50
        )
        self.number = pieces.slider(widgets.IntSlider, "arrivals", "which episode is drawn", value=0, min=0, max=49)
        for control in (self.policy, self.busiest, self.number):
            control.observe(lambda _: self._later.do([self.show]), "value")
        self.message, self.facts = widgets.HTML(layout=pieces.WIDE), widgets.HTML(layout=pieces.WIDE)
        self.charts = pieces.Chart()
        note = widgets.HTML(f'<div class="hl-note">{_EXPLAINED}</div>', layout=pieces.WIDE)
        left = widgets.VBox(
            [
                pieces.heading("Who decides"),
                self.policy,
                pieces.heading("What arrives"),
                self.busiest,
                self.number,
                note,
            ],
            layout=widgets.Layout(flex="0 0 330px", width="330px", padding="0 12px 0 0"),
        )
        right = widgets.VBox(
            [self.message, self.facts, self.charts],
            layout=widgets.Layout(flex="1 1 0", min_width="480px", overflow="hidden"),
        )
        self.widget = widgets.HBox([left, right], layout=widgets.Layout(width="100%"))

    def start(self) -> None:
        """Play the first episode, when the tab is opened."""
        if self.episode is None:
            self._later.do([self.show])

    def show(self) -> None:
        """Play what the widgets say and draw it."""
        try:
            play = Play(self.policy.value, self.busiest.value, self.number.value)
            self.episode = self.edge.play(play)
        except ValueError as failure:
            self.message.value = pieces.error(str(failure))
            return
        self.message.value = ""
        episode = self.episode
        above = episode.mean_s / episode.bound_s - 1
        self.facts.value = pieces.cards(
            [
                (f"{episode.mean_s:.2f} s", f"mean delay of {len(episode.delay_s):,} tasks", None),
                (f"{above:+.0%}", f"above the proven bound of {episode.bound_s:.2f} s", None),
                (f"{episode.wait_s[-1].max():.0f} s", "longest queue as the last slot starts", None),
            ]
        )
        self.charts.show(png(episode_charts(episode, self.edge.rivals(play))))
