"""A clip from a running `broll serve`, followed while it is made.

    broll serve                                              # in another terminal; prints the key
    BROLL_KEY=broll_... python examples/serve_and_generate.py

BROLL_SERVER says where it is, if not on this machine.
"""

import sys

import broll

prompt = " ".join(sys.argv[1:]) or "a lighthouse at dusk, the camera circles it"

with broll.Client() as client:
    cost = client.estimate(prompt, duration=3)
    print(f"{cost['model']}, {cost['credits']} credits")
    job = client.submit(prompt, duration=3)
    for event in client.stream(job.id):
        if event.kind == "progress":
            print(event.data["stage"], event.data["progress"], "%")
    job = client.wait(job.id)
    if job.error:
        sys.exit(f"{job.error_code}: {job.error}")
    print(client.download(job.id, f"{job.id}.mp4"))
