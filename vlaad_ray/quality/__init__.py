"""What is measured about the targets that a teacher gives: noise, jerk, stalls."""
