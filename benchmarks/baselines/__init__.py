"""Small baselines that SACT is compared with, on this library's scenes. They are no part of the library."""
