"""Keeps an AI agent's sessions clean in two layers, and loses nothing."""

__version__ = "0.1.0"
