"""Opens the volume that the settings name; one whose index lies elsewhere is loaded only then."""

from __future__ import annotations

from session_manager.core.layout import USUAL
from session_manager.live.volume import Volume
from session_manager.settings import Settings


def open_volume(settings: Settings) -> Volume:
    """Returns the volume that the settings name."""
    layout, agents_dir = settings.place.layout, settings.place.agents_dir
    if layout.root is None or layout.pattern == USUAL:
        return Volume(layout.root or agents_dir, layout.main_key, agents_dir)
    from session_manager.live.configured import ConfiguredVolume

    return ConfiguredVolume(layout, agents_dir)
