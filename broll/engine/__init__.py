"""Text to frames: the WAN 2.1 models. Knows torch; knows no HTTP, SQL or job."""
