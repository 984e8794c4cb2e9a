"""Chat: models that answer, in the terminal and on a page."""
