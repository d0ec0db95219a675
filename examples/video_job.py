"""Submit, poll, generate: the class that users of hosted video APIs know, with a `broll serve` behind it.

    BROLL_SERVER=http://127.0.0.1:8188 BROLL_KEY=broll_... python examples/video_job.py "a lighthouse at dusk"

Same methods, same answers. What it does not do itself, the client does: one job per submit even if an answer is
lost, waiting without asking every 20 seconds, errors that say what is wrong.
"""

import os
import sys
from typing import Any

from broll.client import Client
from broll.client.errors import WaitTimeout


class VideoJob:
    def __init__(self, api_key: str) -> None:
        self.broll = Client(api_key=api_key)

    def submit(self, prompt: str, duration: int = 5) -> str:
        return self.broll.submit(prompt, duration=duration).id

    def poll(self, job_id: str, max_wait: int = 600) -> dict[str, Any]:
        try:
            return self.broll.wait(job_id, max_wait).data
        except WaitTimeout as late:
            raise TimeoutError(str(late)) from late

    def generate(self, prompt: str) -> str:
        """The URL of the clip; it works in a browser, without the key."""
        result = self.poll(self.submit(prompt))
        if result["status"] == "failed":
            raise RuntimeError(f"generation failed: {result.get('error')}")
        return str(result["output_url"])


if __name__ == "__main__":
    words = " ".join(sys.argv[1:]) or "aerial shot slowly circling a lighthouse on a rocky coast, golden hour"
    print(VideoJob(os.environ.get("BROLL_KEY", "")).generate(words))
