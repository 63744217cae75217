"""Run a student alone: no Ray, no LIBERO, no teacher, no VLM."""
