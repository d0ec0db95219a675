"""The coach as its callers use it."""

import subprocess
import sys
import time

import pytest

from broll.errors import BadOption
from broll.prompts import coach
from broll.prompts.findings import Context


def test_findings_come_in_the_order_of_the_text():
    found = coach.check('panshot of a beach, bokhe lights, a sign that says "SALE", zoom out')
    assert [f.span.start for f in found] == sorted(f.span.start for f in found)


def test_a_rule_explains_itself():
    rule = coach.explain(" cam-2 ")
    assert rule.id == "CAM-2" and rule.why and rule.bad.prompt and rule.good.prompt


def test_an_unknown_rule_is_refused_with_those_that_there_are():
    with pytest.raises(BadOption, match=r'no rule "CAM-9"; there are TEXT-1, '):
        coach.explain("CAM-9")


def test_a_rewrite_tells_what_is_left():
    made = coach.rewrite("seven clowns juggling")
    assert "CNT-1" in {f.rule for f in made.findings_left}


def test_rewriting_settles_what_it_can():
    made = coach.rewrite('pan left over a lake, doly in, a sign that says "SALE", no people', Context())
    settled = {"TEXT-1", "NEG-2", "SPELL-1", "CAM-1", "CAM-2", "CAM-3", "MOT-1"}
    assert not settled & {f.rule for f in made.findings_left}


def test_importing_is_quick_and_needs_no_torch():
    code = (
        "import sys, time, broll; begin = time.process_time(); import broll.prompts.coach; "
        "took = time.process_time() - begin\n"
        "print(took); print(sorted(set(sys.modules) & {'torch', 'numpy', 'cv2', 'transformers', 'httpx'}))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        for _ in range(3)
    ]
    assert min(float(run[0]) for run in runs) < 0.3
    assert runs[0][1] == "[]"


def test_a_prompt_is_checked_within_5_ms():
    prompt = "A quiet alpine valley in early morning, mist over the meadow, cows near a fence, slow dolly in"
    coach.check(prompt)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        coach.check(prompt)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[len(times) // 2] < 0.005
