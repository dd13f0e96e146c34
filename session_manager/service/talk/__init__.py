"""Exchanges with a model: each is opened, runs, and is stored when the reply is complete, on any transport."""
