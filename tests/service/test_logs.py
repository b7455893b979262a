"""Log lines: whole, in order, and never a reason to stand still."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PROGRAM = """
import logging, sys
from service.logs import FieldsRecord, configure_logging
configure_logging("json", "info")
log = logging.getLogger("trial")
{body}
logging.shutdown()
"""


def run(body: str) -> list[str]:
    """What a program that logs has written, by lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()


def test_whoever_logs_while_a_line_is_made_waits_for_nobody() -> None:
    """As the collector of garbage does when it comes upon a task whose error nobody has looked at."""
    body = """
def describe():
    log.error("found on the way")
    return "a request", {"request_id": "1"}
for _ in range(3):
    log.handle(FieldsRecord("trial", logging.INFO, describe))
log.warning("last")
"""
    lines = run(body)
    assert sum("a request" in line for line in lines) == 3
    assert sum("found on the way" in line for line in lines) == 3
    assert sum("last" in line for line in lines) == 1


def test_lines_for_debugging_have_nothing_of_an_image() -> None:
    body = """
import io
from PIL import Image
exif = Image.Exif()
exif[0x010E] = "of a patient"
file = io.BytesIO()
Image.new("RGB", (9, 9)).save(file, "JPEG", exif=exif)
configure_logging("json", "debug")
Image.open(file).getexif().get(0x0112)
logging.getLogger("service.trial").debug("own")
"""
    (line,) = run(body)
    assert '"own"' in line


def test_a_reader_who_is_behind_costs_lines_and_not_memory() -> None:
    read, write = os.pipe()
    body = """
import service.logs
for number in range(3 * service.logs.MOST_LINES):
    log.info("line %d", number)
print("done", file=sys.stderr, flush=True)
"""
    program = [sys.executable, "-c", PROGRAM.format(body=body)]
    process = subprocess.Popen(program, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    try:
        assert process.stderr is not None
        with process.stderr as said:
            assert said.readline() == "done\n"  # a pipe is full with a small part of the lines
        with open(read) as lines:
            found = list(lines)
        assert process.wait(30) == 0
    finally:
        process.kill()
    numbers = [int(line.partition("line ")[2].partition('"')[0]) for line in found if '"line ' in line]
    assert numbers == sorted(numbers)
    assert len(numbers) < 3 * 10_000
    assert any(f"{3 * 10_000 - len(numbers)} lines were dropped" in line for line in found)


def test_lines_of_two_processes_do_not_mix() -> None:
    body = """
for number in range(2000):
    log.info("%s", "x" * 900)
"""
    read, write = os.pipe()
    with open(read) as pipe, ThreadPoolExecutor(1) as pool:
        processes = [
            subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body)], stdout=write) for _ in range(2)
        ]
        os.close(write)
        lines = pool.submit(pipe.read).result(60).splitlines()
        assert [process.wait(60) for process in processes] == [0, 0]
    assert len(lines) == 4000
    assert all(line.startswith('{"time"') and line.endswith("}") for line in lines)
