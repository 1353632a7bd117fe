"""Ponder maps as predictions of where people look."""
