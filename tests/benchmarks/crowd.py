"""Processes that do the same thing at once, and how often they do it together."""

import contextlib
import time
from multiprocessing import get_context

SPAWN = get_context("spawn")
LEAD_S = 0.2  # all of them are at it when the count begins


def member(ways_of, url, orders):
    """One of them: goes the way it is told, until nobody tells it one."""
    ways = ways_of(url)
    orders.send("here")
    with contextlib.suppress(EOFError):  # nobody is left to tell
        while True:
            way, begin, end = orders.recv()
            orders.send(counted(ways[way], begin, end))


def counted(call, begin, end):
    """How many calls begin between the two moments; there are some before the first one too."""
    count = 0
    while (now := time.monotonic()) < end:
        call()
        count += now >= begin
    return count


class Crowd:
    """So many processes, each with its own `ways_of(url)`: calls by name."""

    def __init__(self, size, ways_of, url):
        pipes = [SPAWN.Pipe() for _ in range(size)]
        self.orders = [ours for ours, _ in pipes]
        self.members = [
            SPAWN.Process(target=member, args=(ways_of, url, theirs), daemon=True) for _, theirs in pipes
        ]
        for each, (_, theirs) in zip(self.members, pipes, strict=True):
            each.start()
            theirs.close()  # so that one that dies is noticed

    def rate(self, way, length_s):
        """Calls per second of all together."""
        begin = time.monotonic() + LEAD_S
        for each in self.orders:
            each.send((way, begin, begin + length_s))
        return sum(each.recv() for each in self.orders) / length_s

    def __enter__(self):
        try:
            for each in self.orders:
                each.recv()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for each, orders in zip(self.members, self.orders, strict=True):
            orders.close()
            each.join(10)
