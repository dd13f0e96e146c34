"""What replies in a conversation: a model behind an OpenAI-compatible endpoint, or an echo."""
