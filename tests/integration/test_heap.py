"""What a worker holds beyond what it needs: heaps for its threads, and what units that are tried again leave."""

import gc
import subprocess
import sys
from types import FrameType

import pytest

from .conftest import connect

DATABASES = ("sqlite",)

COUNT = """
import ctypes, sys, threading
from workers.lifecycle import share_one_heap

if sys.argv[1] == "shared":
    share_one_heap()
ready = threading.Barrier(9)

def work():
    kept = bytearray(50_000)
    ready.wait()
    ready.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
libc = ctypes.CDLL(None)
libc.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(text.value.count(b"<heap nr="))
ready.wait()
"""


def heaps(how):
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_threads_of_a_worker_share_one_heap():
    assert heaps("shared") == 1
    assert heaps("as it comes") > 1  # or the test sees nothing


def left_behind(fleet):
    """What a delivery leaves to the garbage collector: objects in cycles."""
    fleet.run("binance.klines", ["BTCUSDT"])
    message = fleet.inbox.take("collect.binance")
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        state = fleet.inbox.run(message)[0]  # what comes with it would keep all of it alive
        gc.collect()
        return state, gc.garbage[:]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_unit_that_is_tried_again_leaves_no_frames_behind(fleet):
    """With what stands in them, and the copy of their code that Celery makes, they were half a megabyte."""
    fleet.configure(PENSTOCK_COLLECTORS="binance")
    connect(fleet.inbox.app)
    left_behind(fleet)  # fills caches
    fleet.upstream.control("binance", fail_next=1)
    state, garbage = left_behind(fleet)
    assert state == "RETRY"
    assert not [each for each in garbage if isinstance(each, FrameType)]
    assert len(garbage) < 1000
