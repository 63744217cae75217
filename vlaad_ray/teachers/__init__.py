"""Teachers by name. A new teacher is one file (or folder) here and one line in TEACHERS."""

from vlaad_ray.teachers.scripted.expert import ScriptedTeacher

TEACHERS = {"scripted": ScriptedTeacher}
"""Name -> constructor, called with the LiberoEnv in which the teacher will act."""
