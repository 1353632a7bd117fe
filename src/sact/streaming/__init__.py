"""Ponder maps of many pictures, one after the other."""
