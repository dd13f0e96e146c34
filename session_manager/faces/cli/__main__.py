"""python -m session_manager.faces.cli."""

from session_manager.faces.cli import main

main()
