"""Pictures that are made of codes: those of the program, to the pixel."""

import diffae
import numpy as np
import pytest

STEPS = ["--steps", "2"]


@pytest.fixture(scope="module")
def code_file(model, faces, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    model.encode(faces[:3], steps=2, names=["a", "b", "c"]).save(path)
    return path


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--x-t", "random", "--seed", "3", *STEPS], {"x_T": "random", "seed": 3, "steps": 2}),
        (["--x-t", "zero", *STEPS, "--sampler", "dpm++2m"], {"x_T": "zero", "steps": 2, "sampler": "dpm++2m"}),
    ],
    ids=["stored", "random", "zero"],
)
def test_decoded_codes(model, program, code_file, pixels, tmp_path, options, settings):
    program("decode", "--model", "toonheads", code_file, "--out", tmp_path / "out", *options)
    decoded = model.decode(diffae.Codes.open(code_file), **settings)
    assert (decoded.dtype, decoded.shape, decoded.flags.c_contiguous) == (np.uint8, (3, 64, 64, 3), True)
    np.testing.assert_array_equal(decoded, pixels(tmp_path / "out"))


def test_exact_codes_come_back(model, faces):
    decoded = model.decode(model.encode(faces[:2]))
    assert np.abs(decoded.astype(int) - faces[:2]).max() <= 1


def test_codes_of_ddim_are_decoded_along_the_chain_of_the_paper(model, faces, face_files, program, pixels, tmp_path):
    program("encode", "--model", "toonheads", face_files, "--reference", *STEPS, "--out", tmp_path / "c.safetensors")
    program("decode", "--model", "toonheads", tmp_path / "c.safetensors", "--steps", "3", "--out", tmp_path / "out")
    codes = model.encode(faces[:3], reference=True, steps=2)
    np.testing.assert_array_equal(model.decode(codes, steps=3), pixels(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "edits", "settings"),
    [
        (["-a", "Smiling", *STEPS], {"Smiling": None}, {"steps": 2}),
        (["-a", "Blond_Hair=0.2", "-a", "long hair=-0.1", *STEPS], {"Blond_Hair": 0.2, "long hair": -0.1}, {"steps": 2}),
        (
            ["-a", "Smiling=0.3", "--invert-steps", "2", *STEPS],
            {"Smiling": 0.3},
            {"invert_steps": 2, "steps": 2},
        ),
    ],
    ids=["full", "several", "ddim"],
)
def test_edits_of_pictures(model, faces, face_files, program, pixels, tmp_path, options, edits, settings):
    program("edit", "--model", "toonheads", face_files, *options, "--out", tmp_path / "out")
    np.testing.assert_array_equal(model.edit(faces[:3], edits, **settings), pixels(tmp_path / "out"))


def test_edits_of_codes(model, program, code_file, pixels, tmp_path):
    program("edit", "--model", "toonheads", code_file, "-a", "Smiling=0.4", "--out", tmp_path / "out")
    codes = diffae.Codes.open(code_file)
    expected = pixels(tmp_path / "out")
    np.testing.assert_array_equal(model.edit(codes, {"Smiling": 0.4}), expected)
    np.testing.assert_array_equal(model.decode(model.edit_codes(codes, {"Smiling": 0.4})), expected)


def test_directions_are_those_that_the_program_lists(model, program):
    listed = program("edit", "--model", "toonheads", "--list").stdout.splitlines()
    ours = [f"{name:<16} full strength: {strength:g}" for name, strength in model.directions.items()]
    assert listed == ours and len(listed) == 13


def test_interpolations(model, faces, face_files, code_file, program, pixels, tmp_path):
    ends = [f"{code_file}:0", f"{code_file}:2"]
    program("interpolate", "--model", "toonheads", *ends, "--frames", "4", "--out", tmp_path / "codes")
    codes = diffae.Codes.open(code_file)
    frames = model.interpolate(codes[0], codes[2], 4)
    np.testing.assert_array_equal(frames, pixels(tmp_path / "codes"))
    files = [face_files / "face_0.png", face_files / "face_1.png"]
    program("interpolate", "--model", "toonheads", *files, "--frames", "3", *STEPS, "--out", tmp_path / "files")
    np.testing.assert_array_equal(
        model.interpolate(faces[:1], faces[1:2], 3, steps=2), pixels(tmp_path / "files")
    )


@pytest.mark.parametrize(
    ("encoding", "interpolating", "decoding"),
    [
        ({"inversion": "ddim", "steps": 2}, {"invert_steps": 2, "steps": 2}, {"steps": 2}),
        ({"steps": 4}, {}, {}),
    ],
)
def test_an_interpolation_is_along_the_chain_of_its_codes(model, faces, encoding, interpolating, decoding):
    codes = model.encode(faces[:1], **encoding)
    expected = model.decode(codes, **decoding)[0]
    for ends, frame in [((codes, faces[1:2]), 0), ((faces[1:2], codes), -1)]:
        frames = model.interpolate(*ends, 2, **interpolating)
        np.testing.assert_array_equal(frames[frame], expected)


def test_samples(model, program, pixels, tmp_path):
    options = ["-n", "3", "--seed", "5", "--latent-steps", "3", *STEPS]
    program("sample", "--model", "toonheads", *options, "--out", tmp_path / "out")
    expected = pixels(tmp_path / "out", "sample_*.png")
    sampled = model.sample(3, seed=5, latent_steps=3, steps=2)
    np.testing.assert_array_equal(sampled, expected)
    alone = model.sample(1, seed=5, latent_steps=3, steps=2, first=2)
    np.testing.assert_array_equal(alone[0], expected[2])


def test_samples_of_all_defaults(model, program, pixels, tmp_path):
    program("sample", "--model", "toonheads", "-n", "1", "--out", tmp_path / "out")
    np.testing.assert_array_equal(model.sample(1), pixels(tmp_path / "out", "sample_*.png"))


def test_variations(model, faces, face_files, program, pixels, tmp_path):
    options = ["-n", "2", "--seed", "7", *STEPS]
    program("variations", "--model", "toonheads", face_files, *options, "--out", tmp_path / "out")
    expected = pixels(tmp_path / "out", "*_variation_*.png")
    varied = model.variations(faces[:3], 2, seed=7, steps=2)
    assert varied.shape == (3, 2, 64, 64, 3)
    np.testing.assert_array_equal(varied.reshape(6, 64, 64, 3), expected)
    codes = model.encode(faces[:3], semantic_only=True)
    np.testing.assert_array_equal(model.variations(codes, 2, seed=7, steps=2), varied)


def test_pictures_of_other_sizes_are_resized_as_files_are(model, faces, program, tmp_path):
    from PIL import Image

    large = np.repeat(np.repeat(faces[:1], 2, axis=1), 3, axis=2)
    Image.fromarray(large[0]).save(tmp_path / "large.png")
    out = tmp_path / "codes.safetensors"
    program("encode", "--model", "toonheads", tmp_path / "large.png", "--semantic-only", "--out", out)
    np.testing.assert_array_equal(model.encode(large, semantic_only=True, check_domain=False).z_sem, diffae.Codes.open(out).z_sem)


def test_pictures_that_the_model_was_not_made_for_are_warned_of(model, faces):
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"made for .*, not for pictures like 0000 \(and 1 more\)"):
        model.encode(noise, semantic_only=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(faces, semantic_only=True)
        model.encode(noise, semantic_only=True, check_domain=False)
