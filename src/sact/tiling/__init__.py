"""Images whose feature maps do not fit into memory: the same result as of the whole, tile by tile."""

from .evaluation import TiledResult, tiled

__all__ = ["TiledResult", "tiled"]
