"""The HTTP face of the service: schemas and routes. Decisions about data live in ``db``."""
