"""Networks alone, below teachers and students: no simulator, no Ray, no store."""
