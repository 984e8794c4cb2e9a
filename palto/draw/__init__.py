"""Pictures of networks at work; they need Matplotlib, which the extra `plot` brings."""
