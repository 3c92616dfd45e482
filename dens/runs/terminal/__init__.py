"""The terminal of a run: header, progress, evaluations; the host's own lines go to a file."""
