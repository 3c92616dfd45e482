"""The allocator keeps freed memory for the next step."""

import os
import platform
import subprocess
import sys

import pytest

from dens.process import _CHOSEN

PAGES = """
import resource

from dens.process import keep_freed_memory


def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**28)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_freed_memory()
new_pages()
print(new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    def pages(**chosen):
        environment = {name: v for name, v in os.environ.items() if name not in _CHOSEN}
        command = [sys.executable, "-c", PAGES]
        return int(subprocess.check_output(command, env={**environment, **chosen}))

    assert pages() < 64
    assert pages(MALLOC_TRIM_THRESHOLD_="65536") > 100  # of 4 KiB, or of 2 MiB
