"""Georeferenced scenes: from two rasters to masks and polygons."""
