"""Commands that measure quality and speed, and record what they find as JSON in `results`."""
