"""How a student learns from a teacher, one method a folder."""
