"""Frames to files and back: PyAV, Pillow; safe decoding of what strangers upload."""
