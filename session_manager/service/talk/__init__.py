"""Talking with a model: an exchange is opened, runs, and is stored when the reply is complete, whoever asked how."""
