"""The replier in a conversation: a model behind an OpenAI-compatible endpoint, or an echo."""
