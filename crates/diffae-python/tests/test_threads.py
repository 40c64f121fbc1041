"""Calls beside other threads, in other processes, with progress, and ended by Ctrl-C."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import diffae
import numpy as np
import pytest
from conftest import HEARS_CTRL_C


def test_the_interpreter_goes_on_during_a_call(model, faces):
    finished = threading.Event()
    counted = []

    def count():
        while not finished.is_set():
            counted.append(time.perf_counter())
            time.sleep(0.002)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    model.encode(faces)
    elapsed = time.perf_counter() - start
    finished.set()
    counter.join()
    during = sum(start < at < start + elapsed for at in counted)
    assert during > elapsed / 0.002 / 20, f"{during} turns in {elapsed:.2f} s"


def test_threads_share_a_model(model, faces):
    expected = [model.encode(faces[number : number + 1], steps=2).x_T for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda number: model.encode(faces[number : number + 1], steps=2).x_T, range(4))
    for ours, alone in zip(found, expected):
        np.testing.assert_array_equal(ours, alone)


def test_calls_with_the_same_number_of_threads_run_at_the_same_time(model, faces):
    both = threading.Barrier(2)

    def encode(number):
        met = []

        def progress(done, total):
            if not met:
                met.append(both.wait(timeout=20))  # breaks if the other call waits for the end of this one

        return model.encode(faces[number : number + 1], steps=2, threads=1, progress=progress).x_T

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(encode, range(2)))
    for number, x_T in enumerate(found):
        np.testing.assert_array_equal(x_T, model.encode(faces[number : number + 1], steps=2, threads=1).x_T)


def test_progress_is_told_and_ends_at_the_total(model, faces):
    told = []
    codes = model.encode(faces[:3], steps=4, batch_size=2, progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (15, 15), "4 steps of an exact chain are 5 calls for each picture"
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    model.decode(codes, progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (12, 12)
    told.clear()
    model.encode(faces[:3], semantic_only=True, batch_size=2, progress=lambda *numbers: told.append(numbers))
    assert told == [(2, 3), (3, 3)]


def test_an_exception_of_the_callback_ends_the_call(model, faces):
    calls = []

    def stop(done, total):
        calls.append(done)
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        model.encode(faces, progress=stop)
    assert len(calls) == 1
    assert len(model.encode(faces[:1], steps=2)) == 1, "the next call is as good as ever"


def interrupted(body, folder):
    """Runs a script, presses Ctrl-C when it says so, and returns what it prints, with the time until its end."""
    script = HEARS_CTRL_C + "import diffae, numpy as np\n" + textwrap.dedent(body)
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout.readline() == "now\n"
    start = time.perf_counter()
    child.send_signal(signal.SIGINT)
    try:
        return child.communicate(timeout=60)[0], time.perf_counter() - start
    finally:
        child.kill()


def test_ctrl_c_ends_a_call(tmp_path):
    rest, elapsed = interrupted(
        """
        model = diffae.load()
        faces = np.repeat(diffae.built_in_pictures()[1], 40, axis=0)
        told = []
        def progress(done, total):
            if not told:
                print("now", flush=True)
            told.append(done)
        try:
            model.encode(faces, steps=100, progress=progress).save("codes.safetensors")
        except KeyboardInterrupt:
            print("interrupted", len(told) < 100)
        """,
        tmp_path,
    )
    assert rest == "interrupted True\n", rest
    assert elapsed < 20
    assert not list(tmp_path.iterdir()), "nothing is left half-written"


def test_ctrl_c_without_a_callback(tmp_path):
    rest, elapsed = interrupted(
        """
        model = diffae.load()
        faces = np.repeat(diffae.built_in_pictures()[1], 40, axis=0)
        try:
            print("now", flush=True)
            model.encode(faces, steps=100)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        tmp_path,
    )
    assert rest == "interrupted\n", rest
    assert elapsed < 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own(faces, tmp_path):
    script = """
        import os, diffae, numpy as np
        model, faces = diffae.load(), diffae.built_in_pictures()[1][:1]
        here = model.encode(faces, steps=2).x_T
        child = os.fork()
        if child == 0:
            there = diffae.load().encode(faces, steps=2).x_T
            os._exit(0 if (there == here).all() else 1)
        print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n", done.stderr


def test_models_are_pickled_by_name_and_path(model, faces, checkpoint, tmp_path, monkeypatch):
    again = pickle.loads(pickle.dumps(model))
    assert len(pickle.dumps(model)) < 1000
    np.testing.assert_array_equal(again.encode(faces[:1], steps=2).x_T, model.encode(faces[:1], steps=2).x_T)
    monkeypatch.chdir(checkpoint.parent)
    relative = diffae.load("last.ckpt")
    monkeypatch.chdir(tmp_path)
    assert relative.path == str(checkpoint)
    relative = pickle.dumps(relative)
    assert pickle.loads(relative).path == str(checkpoint)
    with pytest.raises(diffae.InvalidInput, match="what was pickled was model 0000"):
        diffae._load_again("toonheads", "cpu", "f32", "0000")


def test_exceptions_are_pickled():
    error = pickle.loads(pickle.dumps(diffae.InvalidInput("a sentence")))
    assert isinstance(error, diffae.InvalidInput) and str(error) == "a sentence"
