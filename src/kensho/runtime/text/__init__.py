"""Words to token ids and back, and chat templates."""
