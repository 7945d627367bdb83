"""The life of a run: how it starts, is watched, stops and resumes."""
