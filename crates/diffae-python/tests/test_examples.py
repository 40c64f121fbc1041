"""The examples, each with the library that it is about: `pytest -m peers`."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import diffae
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.peers

EXAMPLES = str(Path(__file__).resolve().parents[1] / "examples")
sys.path.insert(0, EXAMPLES)


@pytest.fixture(scope="module")
def many_faces(model, tmp_path_factory):
    """Sixty faces, some of which smile, as `diffae dataset toonheads` lays them out."""
    folder = tmp_path_factory.mktemp("toonheads")
    (folder / "images").mkdir()
    faces = model.sample(30, steps=4)
    strength = model.directions["Smiling"]
    sides = [model.edit(faces, {"Smiling": sign * strength}, steps=4) for sign in (-1, 1)]
    rows = []
    for number in range(60):
        name = f"{number:05}.png"
        Image.fromarray(sides[number % 2][number // 2]).save(folder / "images" / name)
        rows.append(f"{name} {'1' if number % 2 else '-1'}")
    (folder / "attributes.txt").write_text("\n".join(["60", "Smiling", *rows]) + "\n")
    return folder


def test_a_probe_on_z_sem_beats_the_majority(many_faces):
    import probe

    figures = probe.main(many_faces)
    assert figures["majority"] == 0.5
    assert figures["accuracy"] > 0.65


def test_the_gradio_app_answers_its_clients(faces, model, tmp_path):
    import gradio_app
    from gradio_client import Client, handle_file

    app = gradio_app.make_app()
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    try:
        Image.fromarray(faces[0]).save(tmp_path / "face.png")
        client = Client(address, verbose=False)
        answer = client.predict(handle_file(tmp_path / "face.png"), "Smiling", 1.0, api_name="/edit")
        path = answer["path"] if isinstance(answer, dict) else answer
        edited = np.asarray(Image.open(path).convert("RGB"))
    finally:
        app.close()
    np.testing.assert_array_equal(edited, model.edit(faces[:1], {"Smiling": model.directions["Smiling"]})[0])


def expect_codes_of(folder, out, model):
    """The codes are those of one call, in the order of the files; a second run has nothing to do."""
    files = sorted(folder.rglob("*.png"))
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    codes = diffae.Codes.join([diffae.Codes.open(file) for file in sorted(out.glob("*.safetensors"))])
    assert codes.names == [file.stem for file in files]
    np.testing.assert_array_equal(codes.x_T, model.encode(pictures, threads=1).x_T)


def test_ray_encodes_and_goes_on(many_faces, model, tmp_path, monkeypatch):
    import encode_with_ray

    monkeypatch.setattr(encode_with_ray, "BLOCK", 16)
    encode_with_ray.ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": EXAMPLES}})
    try:
        images = many_faces / "images"
        assert encode_with_ray.main(images, tmp_path)["pictures"] == 60
        (tmp_path / "00002.safetensors").unlink()
        assert encode_with_ray.main(images, tmp_path)["pictures"] == 16
    finally:
        encode_with_ray.ray.shutdown()
    expect_codes_of(images, tmp_path, model)


def workers():
    """The processes of Ray's actors."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended
        if words.startswith("ray::") and "Encoder" in words:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found by /proc")
def test_a_worker_of_ray_that_is_killed_costs_nothing(checkpoint, tmp_path):
    """20,000 pictures and two workers, one of which is killed: nothing is lost, and nothing is there twice."""
    import encode_with_ray

    images, out = tmp_path / "images", tmp_path / "codes"
    images.mkdir()
    generator = np.random.default_rng(0)
    pictures = np.kron(generator.integers(0, 256, (20_000, 4, 4, 3), np.uint8), np.ones((1, 4, 4, 1), np.uint8))
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(images / f"{number:05}.png", compress_level=1)
    killed = []

    def kill():
        while len(list(out.glob("*.safetensors"))) < 40:
            time.sleep(0.02)
        killed.append(min(workers()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    encode_with_ray.ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": EXAMPLES}})
    try:
        killer.start()
        assert encode_with_ray.main(images, out, str(checkpoint), semantic_only=True)["pictures"] == 20_000
    finally:
        encode_with_ray.ray.shutdown()
    assert killed
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [f"{number:05}.safetensors" for number in range(157)]
    codes = diffae.Codes.join([diffae.Codes.open(file) for file in files])
    assert codes.names == [f"{number:05}" for number in range(20_000)]
    expected = diffae.load(checkpoint).encode(pictures, semantic_only=True)
    np.testing.assert_array_equal(codes.z_sem, expected.z_sem)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_encodes_and_goes_on(many_faces, model, tmp_path, monkeypatch, scheduler):
    import encode_with_dask

    monkeypatch.setattr(encode_with_dask, "PARTITION", 16)
    images = many_faces / "images"
    assert encode_with_dask.main(images, tmp_path, scheduler=scheduler)["pictures"] == 60
    (tmp_path / "00001.safetensors").unlink()
    assert encode_with_dask.main(images, tmp_path, scheduler=scheduler)["pictures"] == 16
    expect_codes_of(images, tmp_path, model)
