"""What every job needs around its work: the terminal, the record of a run, the Ray cluster."""
