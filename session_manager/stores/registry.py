"""Opens the volume that the settings name; one whose index lies elsewhere is loaded only then."""

from __future__ import annotations

from session_manager.core.layout import USUAL
from session_manager.settings import Settings
from session_manager.stores.openclaw_files.volume import Volume


def open_volume(settings: Settings) -> Volume:
    """Returns the volume that the settings name."""
    layout, agents_dir = settings.place.layout, settings.place.agents_dir
    if layout.root is None or layout.pattern == USUAL:
        return Volume(layout.root or agents_dir, layout.main_key, agents_dir)
    from session_manager.stores.openclaw_files.configured import ConfiguredVolume

    return ConfiguredVolume(layout, agents_dir)
