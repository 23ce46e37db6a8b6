# ruff: noqa: T201 (it prints what it measures)
"""Frames a second that `cosmos-wds play` gives: `python -m tests.bench_play http://127.0.0.1:8765`.

Steps as a page does, each when the last one's frame is there, in one tab and in two.
"""

import asyncio
import sys
import time

import aiohttp

from cosmos_wds.play.messages import read_answer

STEPS = 100


async def tab(session, url, start):
    """Drive one tab; returns its frames a second."""
    opened = session.ws_connect(f"{url}/ws", headers={"Origin": url}, max_msg_size=0)
    async with opened as socket:

        async def ask(**request):
            await socket.send_json(request)
            return read_answer((await socket.receive()).data)[0]

        hello, _ = read_answer((await socket.receive()).data)
        await ask(do="begin", start=start % len(hello["starts"]), seed=0)
        action = [high / 2 for high in hello["high"]]
        assert (await ask(do="step", action=action))["is"] == "frame"
        begin = time.perf_counter()
        for _ in range(STEPS):
            await ask(do="step", action=action)
        return STEPS / (time.perf_counter() - begin)


async def main(url):
    async with aiohttp.ClientSession() as session:
        for count in (1, 2):
            rates = await asyncio.gather(*(tab(session, url, start) for start in range(count)))
            print(f"{count} tabs: {', '.join(f'{rate:.1f}' for rate in rates)} frames/s")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/")))
