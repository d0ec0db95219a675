"""The 25 rules, by theme.

    text        TEXT-1  SPELL-1  LANG-1      words in the picture, wrong words, two languages
    negative    NEG-1  NEG-2  NEG-3          what is not wanted
    motion      MOT-1  MOT-2  PHY-1          what moves, how fast, what moves it
    camera      CAM-1  CAM-2  CAM-3  CAM-4   how the camera moves, from how far it looks
    sequence    SEQ-1  SEQ-2  LOOP-1         more than a clip holds; loops
    style       STY-1  STY-2                 one look
    picture     I2V-1  FLF-1                 clips that start from a picture
    length      LEN-1  RES-1                 words and pixels
    risk        CNT-1  CHR-1  SAFE-1         what goes wrong, names, blocked words

docs/prompts.md shows each with its bad and its good prompt.
"""

from broll.prompts.rules import camera, length, motion, negative, picture, risk, sequence, style, text
from broll.prompts.rules.rule import Rule

THEMES = (text, negative, motion, camera, sequence, style, picture, length, risk)
RULES: tuple[Rule, ...] = tuple(rule for theme in THEMES for rule in theme.RULES)
