"""The published edge system: servers, links, tasks, arrivals, and what no policy can beat."""

from __future__ import annotations


def register_environments() -> None:
    """Make `gymnasium.make("hybridlib/MecTask-v0", model=...)` work; gymnasium itself calls it, if we are installed."""
    from gymnasium.envs import registration

    # gymnasium puts its plugins into a namespace of their own, which a name must then not repeat.
    name = "MecTask-v0" if registration.current_namespace else "hybridlib/MecTask-v0"
    if "hybridlib/MecTask-v0" not in registration.registry:
        registration.register(name, entry_point="hybridlib.scheduling.system.views:MecTaskEnv")
