"""How many heaps glibc keeps for the threads of a worker."""

import subprocess
import sys

import pytest

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
