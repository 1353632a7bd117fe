"""Ponder maps of many pictures, one after the other: folders, videos, and pictures larger than memory."""
