"""A plugin that has no hooks."""
