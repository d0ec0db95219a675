"""Numbers for tests of what is left out of a clip's steps."""

from broll.engine.config import PUBLISHED, Ratios

STEPS = 12
FALLING = Ratios(tuple([1.0] + [0.99] * 11), tuple([1.0] + [0.98] * 11), "made up")
WAN = PUBLISHED["wan2.1-t2v-1.3b"]
