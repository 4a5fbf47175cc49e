"""Decode workers: what they answer, how they end, and what they may cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
import gc
import os
from pathlib import Path
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from PIL import Image
import pytest

from inference_service.errors import (
    ImageTooLargeError,
    InternalError,
    InvalidImageError,
)
from inference_service.media import decoder as decoder_module
from inference_service.media import pool as pool_module
from inference_service.media import worker_process
from inference_service.media.decode import decode_video
from inference_service.media.images import FrameSpec
from inference_service.media.pool import WorkerPool
from inference_service.media.worker_use import WorkerUse
from inference_service.model_spec import ImagePolicy
from tests.engine_client.engine_front import is_running, until
from tests.media.decoding import JPEG, SLOW, VIDEO, cpu_s, peak_mib
from tests.media.files import LIMITS, decoded, encoded, noise, png


ROOT = Path(__file__).parents[2]


async def test_same_images_as_in_this_process(make, policy: ImagePolicy) -> None:
    one = make()
    assert await one.image(JPEG, policy) == decoded(JPEG, policy)
    files = [encoded(noise("RGB", (96, 64), seed)) for seed in (1, 2, 1, 1, 3)]
    spec = FrameSpec(policy=policy, video=VIDEO, fps=2.0)
    assert await one.video(files, policy) == decode_video(files, [""] * 5, spec, LIMITS)


async def test_refusals_arrive_whole(make, policy: ImagePolicy) -> None:
    one = make(1)
    for data, kind, words in (
        (JPEG[:-40], InvalidImageError, "cut off"),
        (encoded(noise("RGB", (1, 201))), InvalidImageError, "200 times"),
        (b"%PDF-1.7", InvalidImageError, "is PDF"),
        (png(8000, 8000), ImageTooLargeError, "--max-image-pixels"),
    ):
        with pytest.raises(kind, match=words) as caught:
            await one.image(data, policy)
        assert caught.value.field == "f"
    with pytest.raises(InvalidImageError, match="same size") as caught:
        await one.video([JPEG, JPEG, encoded(noise("RGB", (9, 7)))], policy)
    assert caught.value.field == "f2"
    assert len(one.pool.pids) == 1
    assert await one.image(JPEG, policy)


async def test_a_worker_that_crashes_is_that_images_error_alone(make, policy: ImagePolicy) -> None:
    one = make(1)
    hit = asyncio.ensure_future(one.image(SLOW, policy))
    pid = await one.busy_pid()
    waiting = asyncio.ensure_future(one.image(JPEG, policy))
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(InvalidImageError, match="decoder failed") as caught:
        await hit
    assert caught.value.field == "f"
    assert await waiting == decoded(JPEG, policy)
    assert pid not in one.pool.pids


async def test_a_worker_that_is_killed_while_idle_harms_nobody(make, policy: ImagePolicy) -> None:
    one = make(1)
    await one.image(JPEG, policy)
    [pid] = one.pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not is_running(pid))
    assert await one.image(JPEG, policy) == decoded(JPEG, policy)


async def test_the_caller_who_leaves_ends_the_worker(make, policy: ImagePolicy) -> None:
    one = make(1)
    leaving = asyncio.ensure_future(one.image(SLOW, policy))
    pid = await one.busy_pid()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: not is_running(pid))
    assert await one.image(JPEG, policy) == decoded(JPEG, policy)


async def test_a_short_job_whose_caller_leaves_keeps_its_worker(
    make, policy: ImagePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "GRACE_S", 20.0)  # short is relative to the machine
    one = make(1)
    await one.image(JPEG, policy)
    pids = one.pool.pids
    for _ in range(20):
        leaving = asyncio.ensure_future(one.image(JPEG, policy))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    # All at once, also those that still wait for the worker.
    many = [asyncio.ensure_future(one.image(JPEG, policy)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for leaving in many:
        leaving.cancel()
    await asyncio.wait(many)
    assert await one.image(JPEG, policy)
    assert one.pool.pids == pids


async def test_deadline_of_an_image_and_of_a_request(make, policy: ImagePolicy) -> None:
    one = make(1, image_timeout_s=1.0)
    with pytest.raises(ImageTooLargeError, match="--decode-timeout-s") as caught:
        await one.image(SLOW, policy)
    assert caught.value.field == "f"
    assert await one.image(JPEG, policy)
    hurried = make(1, request_timeout_s=0.5)
    allowance = hurried.decoder.allowance()
    with pytest.raises(ImageTooLargeError, match="--request-decode-timeout-s"):
        await hurried.image(SLOW, policy, allowance)
    allowance.seconds = 0.0
    with pytest.raises(ImageTooLargeError):
        await hurried.image(JPEG, policy, allowance)


async def test_cpu_time_is_limited_by_the_kernel(make, policy: ImagePolicy, monkeypatch) -> None:
    """Also where the front cannot: here it believes that there is an hour."""
    one = make(1, image_timeout_s=0.1)
    run = WorkerPool.run

    async def patient(self: WorkerPool, *args: Any, **options: Any) -> Any:
        return await run(self, *args, **options | {"timeout_s": 3600.0})

    monkeypatch.setattr(WorkerPool, "run", patient)
    async with asyncio.timeout(60):
        with pytest.raises(ImageTooLargeError, match="too long"):
            # Several seconds also on a fast machine: the kernel counts whole ones.
            await one.video([SLOW[:60] + bytes((i,)) + SLOW[61:] for i in range(16)], policy)


async def test_a_worker_that_stands_still_is_ended_at_the_deadline(
    make, policy: ImagePolicy
) -> None:
    """It takes no CPU time, so that the kernel does not end it."""
    one = make(1, image_timeout_s=2.0)
    assert await one.image(JPEG, policy)
    [pid] = one.pool.pids
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(30):
        with pytest.raises(ImageTooLargeError, match="--decode-timeout-s"):
            await one.image(JPEG, policy)
        assert await one.image(JPEG, policy)
    assert pid not in one.pool.pids


async def test_memory_is_limited(make, policy: ImagePolicy) -> None:
    large = encoded(Image.new("RGB", (6000, 6000)), "JPEG", quality=10)
    small = make(1, memory_mib=64)
    for data in (large, encoded(Image.new("L", (7000, 7000)), "WEBP", lossless=True)):
        with pytest.raises((ImageTooLargeError, InvalidImageError)):
            await small.image(data, policy)
    assert await small.image(JPEG, policy) == decoded(JPEG, policy)
    assert peak_mib(small.pool.pids[0]) < 64 + 100


async def test_pixels_of_a_request_are_limited_before_any_is_decoded(
    make, policy: ImagePolicy
) -> None:
    one = make(1, max_request_pixels=200_000_000)
    # 128 different files of 50 megapixels in their headers, and nothing behind.
    files = [png(7000, 7000, body=bytes((i,))) for i in range(128)]
    with pytest.raises(ImageTooLargeError, match="--max-request-pixels") as caught:
        await one.video(files, policy)
    assert caught.value.field == "f4"
    assert not one.pool.pids
    allowance = one.decoder.allowance()
    small = encoded(Image.new("RGB", (1000, 1000)))
    await one.video([small] * 128, policy, allowance)
    assert allowance.pixels == 199_000_000  # decoded once


def odd_files() -> list[bytes]:
    """Sound files with thousands of parts before their pixels, or with something else before them."""
    picture = noise("P", (40, 30))
    gif, webp = encoded(picture, "GIF"), encoded(picture, "WEBP")
    jpeg = encoded(picture.convert("RGB"), "JPEG")
    at = gif.index(b"\x2c", 13 + 768)
    return [
        gif[:at] + b"\x21\xfe" + b"\1a" * 5_000 + b"\0" + gif[at:],
        webp[:12] + b"EXIF\0\0\0\0" * 5_000 + webp[12:],
        jpeg[:2] + b"\xff\xfe\0\2" * 1_500 + jpeg[2:],
        b"\0" + png(40, 30, body=os.urandom(2**17)),  # cut off, as its pixels are none
    ]


def noted_work(monkeypatch) -> list[str]:
    """The kinds of work that the front gives to workers."""
    given: list[str] = []
    run = WorkerPool.run

    async def noted(self: WorkerPool, job: Any, *args: Any, **options: Any) -> Any:
        given.append(type(job.work).__name__)
        return await run(self, job, *args, **options)

    monkeypatch.setattr(WorkerPool, "run", noted)
    return given


async def test_headers_of_many_parts_are_read_by_workers(
    make, policy: ImagePolicy, monkeypatch
) -> None:
    one = make(1)
    given = noted_work(monkeypatch)
    *sound, broken = odd_files()
    for data in sound:
        allowance = one.decoder.allowance()
        before = allowance.pixels
        assert await one.image(data, policy, allowance) == decoded(data, policy)
        assert before - allowance.pixels == 40 * 30
    assert given == ["HeaderWork", "ImageWork"] * len(sound)
    with pytest.raises(InvalidImageError) as caught:
        await one.image(broken, policy)
    assert caught.value.field == "f"
    assert given[-2:] == ["HeaderWork", "ImageWork"]
    given.clear()
    await one.video([sound[0], sound[0]], policy)
    assert given == ["HeaderWork", "VideoWork"]  # equal files once


async def test_limits_hold_for_headers_that_workers_read(
    make, policy: ImagePolicy, monkeypatch
) -> None:
    given = noted_work(monkeypatch)
    extensions = b"\x21\1\0" * 19_990
    large = b"GIF89a\x70\x17\x70\x17\0\0\0" + extensions + b"\x2c\0\0\0\0\1\0\1\0\0\2"
    one = make(1, max_request_pixels=100_000_000)
    with pytest.raises(ImageTooLargeError, match="--max-request-pixels") as caught:
        await one.video([large + bytes((i,)) for i in range(4)], policy)
    assert caught.value.field == "f2"  # of 36 megapixels each
    assert given == ["HeaderWork"] * 3
    small = make(1, limits=replace(LIMITS, max_pixels=10_000_000))
    with pytest.raises(ImageTooLargeError, match="6000 x 6000 pixels") as caught:
        await small.image(large, policy)
    assert caught.value.field == "f"
    with pytest.raises(InvalidImageError, match="cut off") as refused:
        await one.image(large[:-11], policy)
    assert refused.value.field == "f"
    with pytest.raises(ImageTooLargeError, match="may not be resized"):
        await one.decoder.decode(
            large,
            one.decoder.allowance(),
            policy=policy,
            min_pixels=policy.min_pixels,
            max_pixels=policy.max_pixels,
            field="f",
            rejects_oversized=True,
        )
    assert set(given) == {"HeaderWork"}


async def test_equal_frames_are_decoded_once(make, policy: ImagePolicy) -> None:
    one = make(1)
    still = encoded(noise("RGB", (512, 512)))
    await one.image(still, policy)
    [pid] = one.pool.pids
    begun = cpu_s(pid)
    await one.image(encoded(Image.new("RGB", (3000, 3000))), policy)
    single = cpu_s(pid) - begun
    video = replace(policy, max_pixels=2**20)
    begun = cpu_s(pid)
    pieces = await one.video([encoded(Image.new("RGB", (3000, 3000)))] * 8, video)
    assert len(pieces) == 4
    assert cpu_s(pid) - begun < 8 * single + 1


async def test_cheap_images_do_not_wait_for_expensive_ones(make, policy: ImagePolicy) -> None:
    one = make(2)
    slow = [asyncio.ensure_future(one.image(SLOW, policy)) for _ in range(4)]
    await one.busy_pid()
    async with asyncio.timeout(60):
        for _ in range(5):
            assert await one.image(JPEG, policy) == decoded(JPEG, policy)
    assert not any(job.done() for job in slow)
    for job in slow:
        job.cancel()
    await asyncio.wait(slow)


async def test_what_is_enlarged_is_expensive_too(make, policy: ImagePolicy, monkeypatch) -> None:
    one = make(2)
    asked: list[bool] = []
    run = WorkerPool.run

    async def noted(self: WorkerPool, *args: Any, **options: Any) -> Any:
        asked.append(options["expensive"])
        return await run(self, *args, **options)

    monkeypatch.setattr(WorkerPool, "run", noted)
    for changed in (policy, replace(policy, min_pixels=policy.max_pixels)):
        await one.image(encoded(noise("RGB", (8, 8))), changed)
    await one.image(encoded(Image.new("1", (5000, 5000))), policy)
    await one.video([JPEG, JPEG], policy)
    assert asked == [False, True, True, False]


async def test_close_does_not_wait_for_a_running_decode(make, policy: ImagePolicy) -> None:
    one = make(2)
    jobs = [asyncio.ensure_future(one.image(SLOW, policy)) for _ in range(4)]
    pid = await one.busy_pid()
    pids = one.pool.pids
    begun = time.monotonic()
    one.decoder.close()
    assert time.monotonic() - begun < 2
    assert pid in pids
    assert not any(map(is_running, pids))
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(outcome, BaseException) for outcome in outcomes)
    with pytest.raises(InternalError):
        await one.image(JPEG, policy)


async def test_close_while_a_worker_starts(make, policy: ImagePolicy) -> None:
    one = make(1, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    jobs = [asyncio.ensure_future(one.image(JPEG, policy)) for _ in range(3)]
    await asyncio.sleep(0.05)
    one.decoder.close()
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 3


async def test_a_worker_goes_past_jobs_that_were_just_given_up(make, policy: ImagePolicy) -> None:
    one = make(1)
    pool = one.pool
    worker = await pool._take(expensive=False)
    gone, waiting = (asyncio.ensure_future(pool._take(expensive=False)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    pool._give(worker)  # before the job that was given up had its turn
    assert await waiting is worker
    assert gone.cancelled() or (await asyncio.wait([gone]) and gone.cancelled())
    pool._give(worker)
    assert await one.image(JPEG, policy) == decoded(JPEG, policy)


async def test_the_next_job_is_of_who_has_used_the_workers_least(make) -> None:
    pool = make(1).pool
    worker = await pool._take(expensive=False, caller="greedy")
    pool._use.add("greedy", 20.0)
    pool._use.add("modest", 0.2)
    order: list[str] = []

    async def take(caller: str, *, expensive: bool = False) -> None:
        taken = await pool._take(expensive=expensive, caller=caller)
        order.append(caller)
        pool._give(taken)

    jobs = [
        asyncio.ensure_future(take(caller)) for caller in ("greedy", "greedy", "modest", "new", "")
    ]
    await asyncio.sleep(0)
    pool._give(worker)
    await asyncio.gather(*jobs)
    assert order == ["new", "", "modest", "greedy", "greedy"]


async def test_a_job_that_waits_comes_before_newcomers_in_the_end(make) -> None:
    pool = make(1).pool
    worker = await pool._take(expensive=False)
    pool._use.add("greedy", 20.0)
    jobs = [asyncio.ensure_future(pool._take(expensive=False, caller="greedy"))]
    await asyncio.sleep(0)
    pool._waiters[0].asked_s -= 30.0
    jobs.append(asyncio.ensure_future(pool._take(expensive=False, caller="new")))
    await asyncio.sleep(0)
    for job in jobs:
        pool._give(worker)
        assert await job is worker


async def test_callers_take_turns_on_several_workers(make) -> None:
    """Whoever has a worker comes after those who have none, whatever they have used."""
    pool = make(2).pool
    workers = [await pool._take(expensive=False, caller=caller) for caller in ("a", "b")]
    pool._use.add("b", 20.0)
    jobs = [
        asyncio.ensure_future(pool._take(expensive=False, caller=caller)) for caller in ("a", "b")
    ]
    await asyncio.sleep(0)
    pool._give(workers[1])
    assert await jobs[1] is workers[1]
    pool._give(workers[0])
    assert await jobs[0] is workers[0]


async def test_a_job_that_is_not_as_cheap_as_it_says_leaves_the_worker_of_cheap_ones(
    make, policy: ImagePolicy, monkeypatch
) -> None:
    """Another caller's images go on being decoded, and the caller is not believed again for a while."""
    monkeypatch.setattr(decoder_module, "CHEAP_PIXELS", 10**12)
    monkeypatch.setattr(pool_module, "CHEAP_CPU_S", 0.2)  # the kernel counts whole seconds
    one = make(2, image_timeout_s=120, request_timeout_s=120)
    await one.image(JPEG, policy)
    pool, greedy = one.pool, one.decoder.allowance("greedy")
    [cheap] = [worker for worker in (*pool._idle, *pool._busy) if not worker.any_cost]
    slow = asyncio.ensure_future(one.image(SLOW, policy, greedy))
    async with asyncio.timeout(60):
        await until(lambda: not is_running(cheap.process.pid))
        await until(lambda: [worker.any_cost for worker in pool._busy] == [True])
        [other] = pool._busy
        os.kill(other.process.pid, signal.SIGSTOP)  # as if it took for ever
        waiting = asyncio.ensure_future(one.image(JPEG, policy, greedy))
        for _ in range(5):
            got = await one.image(JPEG, policy, one.decoder.allowance("modest"))
            assert got == decoded(JPEG, policy)
    assert not slow.done()
    assert not waiting.done(), "it waits for the worker of any cost"
    for job in (slow, waiting):
        job.cancel()
    await asyncio.wait([slow, waiting])


async def test_who_lies_is_not_believed_for_a_while_unless_it_is_unknown() -> None:
    now = 100.0
    use = WorkerUse(clock=lambda: now)
    for caller in ("a", ""):
        use.distrust(caller)
    assert [use.trusts(caller) for caller in ("a", "b", "")] == [False, True, True]
    use.add("a", 8.0)
    use.add("b", 0.02)
    now += 60.0
    assert use.trusts("a")
    assert use.seconds("a") == pytest.approx(2.0)
    use.add("c", 1.0)
    assert set(use._used) == {"a", "c"}, "what is forgotten takes no memory"


async def test_an_idle_worker_holds_no_pixels(make, policy: ImagePolicy) -> None:
    one = make(1)
    gc.collect()  # others may have left pixels in cycles
    before = mapped_pixels()
    image = await one.image(JPEG, policy)
    assert mapped_pixels() == before + 1
    del image
    assert mapped_pixels() == before
    assert [worker.running for worker in one.pool._idle] == [None]


def mapped_pixels() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:decoded")


@pytest.mark.parametrize("how", ["exits", "nonsense", "silent"])
async def test_a_worker_that_does_not_start(
    make, policy: ImagePolicy, monkeypatch, how: str
) -> None:
    monkeypatch.setattr(worker_process, "START_TIMEOUT_S", 2.0)
    code = {
        "exits": "raise SystemExit(3)",
        "nonsense": "import os, sys; os.write(int(sys.argv[2]), b'\\xff' * 99); sys.stdin.read()",
        "silent": "import time; time.sleep(60)",
    }[how]
    one = make(1, command=(sys.executable, "-c", code))
    with pytest.raises(InternalError, match="no decode worker starts"):
        await one.image(JPEG, policy)
    missing = make(1, command=("/nonexistent",))
    with pytest.raises(InternalError, match="no decode worker starts"):
        await missing.image(JPEG, policy)


async def test_jobs_that_no_worker_can_do_do_not_wait(make, policy: ImagePolicy) -> None:
    one = make(1)
    await one.image(JPEG, policy)
    one.pool._command = ("/nonexistent",)  # as if the machine had no process left
    [pid] = one.pool.pids
    jobs = [asyncio.ensure_future(one.image(SLOW, policy)) for _ in range(3)]
    assert await one.busy_pid() == pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        first, *others = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(first, InvalidImageError)
    assert [type(other) for other in others] == [InternalError] * 2


async def test_a_caller_who_leaves_while_a_worker_ends_takes_none_along(
    make, policy: ImagePolicy
) -> None:
    one = make(1)
    leaving = asyncio.ensure_future(one.image(SLOW, policy))
    pid = await one.busy_pid()
    [worker] = one.pool._busy
    os.kill(pid, signal.SIGSTOP)
    worker._socket.shutdown(socket.SHUT_RD)  # as an ending process does before it has a status
    await asyncio.sleep(0.05)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await one.image(JPEG, policy) == decoded(JPEG, policy)
    assert pid not in one.pool.pids


def test_kill_9_of_the_front_leaves_no_worker() -> None:
    program = """
import asyncio
from tests.media.decoding import Decoding, SLOW
from inference_service.model_spec import ImagePolicy
policy = ImagePolicy(patch_size=16, merge_size=2, temporal_patch_size=2, min_pixels=65536,
    max_pixels=2**24, mean=(0.5,) * 3, std=(0.5,) * 3)
async def main():
    one = Decoding(2)
    job = asyncio.ensure_future(one.image(SLOW, policy))
    await one.busy_pid()
    print(*one.pool.pids, flush=True)
    await job
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT
    ) as front:
        assert front.stdout is not None
        pids = [int(pid) for pid in front.stdout.readline().split()]
        assert len(pids) == 2
        front.kill()
    asyncio.run(until(lambda: not any(map(is_running, pids))))


def test_a_worker_imports_only_what_decoding_needs() -> None:
    code = (
        "import sys, inference_service.media.worker\n"
        "names = 'torch numpy grpc google pydantic httpx tokenizers ssl asyncio pickle'.split()\n"
        "assert not set(names) & set(sys.modules), set(names) & set(sys.modules)"
    )
    # A measurement of coverage has imports of its own.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, check=True, timeout=60)


def test_the_sandbox_refuses_connections_programs_and_processes() -> None:
    """Everything else goes on as before: the other tests decode in it."""
    code = """
import os, socket, sys
from inference_service.media.sandbox import enter_sandbox
if not enter_sandbox():
    raise SystemExit(77)
attempts = {
    "socket": lambda: socket.socket(),
    "fork": os.fork,
    "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", "print(1)"]),
    "spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", "print(1)"], {}),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit(name)
open(os.devnull).close()
print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no seccomp filters")
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_a_worker_runs_no_code_of_the_current_directory(tmp_path: Path) -> None:
    for name in ("PIL", "msgspec", "zlib", "struct", "inference_service"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    program = """
import asyncio
from tests.media.decoding import Decoding, JPEG
from inference_service.model_spec import ImagePolicy
policy = ImagePolicy(patch_size=16, merge_size=2, temporal_patch_size=2, min_pixels=65536,
    max_pixels=2**24, mean=(0.5,) * 3, std=(0.5,) * 3)
async def main():
    one = Decoding(1)
    await one.image(JPEG, policy)
    one.decoder.close()
asyncio.run(main())
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=60,
    )
    assert not (tmp_path / "ran").exists()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_or_process_stays(make, policy: ImagePolicy) -> None:
    one = make(2)
    await asyncio.gather(*(one.image(JPEG, policy) for _ in range(4)))
    before = descriptors()
    for _ in range(50):
        await one.image(JPEG, policy)
    assert descriptors() <= before + 1
    one.decoder.close()
    assert descriptors() <= before
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
