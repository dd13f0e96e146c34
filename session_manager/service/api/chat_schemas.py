"""Schemas of the requests to /api/engine/chat and of its events."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from session_manager.service.api.engine_schemas import Content, Key
from session_manager.service.api.schemas import Name
from session_manager.service.talk.opening import Ask

ENCRYPTED_SENTENCE = (
    "an encrypted message cannot be answered, because no model can read it; "
    "store it with POST /api/engine/sessions/{id}/messages"
)


class ChatRequest(BaseModel):
    """A message to the model. Without `session_id` it begins a session, which exists once the reply is complete."""

    model_config = ConfigDict(extra="forbid")

    message: Content
    session_id: uuid.UUID | None = Field(default=None, description="the session to continue; default: a new one")
    agent_id: Name = Field(
        default="main", description="the owner of a new session; an existing session keeps its owner"
    )
    org_id: Name | None = Field(default=None, description="the organisation of a new session; one of the token's")
    model: Name | None = Field(default=None, description="the model for this reply; a new session keeps it")
    idempotency_key: Key | None = Field(
        default=None, description="a retry with the same key and message returns what is stored, and stores nothing"
    )

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, body: Any) -> Any:
        if isinstance(body, dict) and ("encrypted" in body or isinstance(body.get("message"), dict)):
            raise ValueError(ENCRYPTED_SENTENCE)
        return body

    def ask(self) -> Ask:
        """Returns the request to the model."""
        return Ask(self.message, self.session_id, self.agent_id, self.org_id, self.model, self.idempotency_key)
