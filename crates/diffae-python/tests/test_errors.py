"""What cannot be done is an exception with one clear sentence, the program's where it has one."""

import diffae
import numpy as np
import pytest


def refused(match, call, *arguments, kind=diffae.InvalidInput, **settings):
    with pytest.raises(kind, match=match) as raised:
        call(*arguments, **settings)
    text = str(raised.value)
    assert "\n" not in text and text == text.strip() and not text.endswith(".")
    return text


def test_classes():
    assert diffae.InvalidInput.__bases__ == (diffae.Error, ValueError)
    assert diffae.Failure.__bases__ == (diffae.Error, RuntimeError)
    assert diffae.Error.__module__ == "diffae"


def test_arrays_that_are_no_pictures(model, faces):
    expected = r"expected a C-contiguous uint8 array \[N, H, W, 3\]"
    for wrong, got in [
        (faces.astype(np.float32), "an array of float32"),
        (faces[0], r"an array of shape \[64, 64, 3\]"),
        (faces[:0], r"an array of shape \[0, 64, 64, 3\]"),
        (faces[..., :1].copy(), r"an array of shape \[8, 64, 64, 1\]"),
        (faces[:, :0].copy(), r"an array of shape \[8, 0, 64, 3\]"),
        (faces.tolist(), "of type list"),
        (None, "of type NoneType"),
    ]:
        refused(f"pictures is {got}, {expected}", model.encode, wrong)
    for view in [faces[:, ::-1], faces[::2, :, ::2], np.asfortranarray(faces), faces.transpose(0, 2, 1, 3)]:
        refused("not C-contiguous; pass numpy.ascontiguousarray", model.encode, view)
    model.encode(np.ascontiguousarray(faces[:1, :, ::-1]), semantic_only=True, check_domain=False)
    read_only = faces[:1].copy()
    read_only.setflags(write=False)
    model.encode(read_only, semantic_only=True)


def test_settings(model, faces):
    one = faces[:1]
    refused("steps is 0, expected a positive whole number", model.encode, one, steps=0)
    refused("steps is 'ten', expected a positive whole number", model.encode, one, steps="ten")
    refused("sampler: .*euler", model.sample, 1, sampler="euler")
    refused("the inversion is .*backwards.*, expected exact", model.encode, one, inversion="backwards")
    refused("progress is 3, expected a function", model.encode, one, progress=3)
    refused("latent-sampler is ddpm, expected one that adds no noise", model.sample, 1, latent_sampler="ddpm")
    refused("samples is none|the number", model.sample, 0)
    refused("names", model.encode, one, names=["a", "b"])
    message = "unexpected keyword argument \"stepz\"; there are .*steps"
    with pytest.raises(TypeError, match=message):
        model.encode(one, stepz=3)
    with pytest.raises(TypeError, match="unexpected keyword argument \"invert_steps\""):
        model.encode(one, inversion="ddim", invert_steps=3)


def test_what_cannot_be_done_is_said_before_anything_is_computed(model, faces):
    told = []
    settings = {"progress": lambda *numbers: told.append(numbers)}
    one = faces[:1]
    refused("2 and 1 pictures", model.interpolate, faces[:2], one, 3, **settings)
    refused("1 and 2 pictures", model.interpolate, one, model.encode(faces[:2], steps=2), 3, **settings)
    refused("1 frames", model.interpolate, one, one, 1, **settings)
    refused("5000", model.interpolate, one, one, 3, steps=5000, invert_steps=2, **settings)
    refused("5000", model.interpolate, one, one, 3, steps=2, invert_steps=5000, **settings)
    refused("5000", model.edit, one, {"Smiling": 1}, steps=5000, invert_steps=2, **settings)
    refused("5000", model.edit, one, {"Smiling": 1}, steps=2, invert_steps=5000, **settings)
    refused("5000", model.variations, one, 2, steps=5000, **settings)
    refused("the strength of an edit is inf", model.edit, one, {"Smiling": float("inf")}, **settings)
    refused("given twice", model.edit, one, {"Smiling": 0.1, "smiling": 0.2}, **settings)
    assert not told


def test_sentences_are_the_programs(model, faces, face_files, checkpoint, program, tmp_path):
    def theirs(*words):
        return program(*words, fails=True).stderr.strip().removeprefix("error: ")

    out = ["--out", tmp_path / "out"]
    words = ["edit", "--model", "toonheads", face_files, "-a", "Wings=1", *out]
    assert refused("no attribute", model.edit, faces[:1], {"Wings": 1}) == theirs(*words)

    words = ["encode", "--model", "toonheads", face_files, "--steps", "5000", "--out", tmp_path / "o.safetensors"]
    ours = refused("5000", model.encode, faces[:1], steps=5000)
    assert theirs(*words) == f"--steps: {ours}"

    codes = tmp_path / "codes.safetensors"
    diffae.load(checkpoint).encode(faces[:1], steps=2).save(codes)
    opened = diffae.Codes.open(codes)
    ours = refused("was made by model", model.decode, opened)
    assert theirs("decode", "--model", "toonheads", codes, *out) == f"{ours}; --any-model decodes them anyway"
    assert refused("was made by", model.edit, opened, {"Smiling": 1}) == theirs(
        "edit", "--model", "toonheads", codes, "-a", "Smiling=1", *out
    )

    model.encode(faces[:2], steps=2).save(codes, overwrite=True)
    ours = refused("is decoded along that chain", model.decode, diffae.Codes.open(codes), steps=3)
    assert ours == theirs("decode", "--model", "toonheads", codes, "--steps", "3", *out)

    missing = tmp_path / "no-model"
    assert refused("no-model", diffae.load, missing) == theirs("info", missing)
    refused("no-codes", diffae.Codes.open, tmp_path / "no-codes.safetensors")
    refused("\"tpu\" is not a device; there are auto, cpu, cuda, cuda:N and metal", diffae.load, device="tpu")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert refused("damaged", diffae.Codes.open, damaged) == theirs("decode", "--model", "toonheads", damaged, *out)
    ours = refused("there is no preset", diffae.train, "huge", data=face_files, out=tmp_path / "run")
    assert ours == theirs("train", "--preset", "huge", "--data", face_files, "--out", tmp_path / "run")


def test_codes_of_another_model_that_were_in_no_file(model, faces, checkpoint):
    other = diffae.load(checkpoint)
    codes = other.encode(faces[:1], steps=2)
    refused("this set of codes was made by model", model.decode, codes)
    refused("this set of codes was made by model", model.interpolate, codes, codes, 3)
    refused("this set of codes was made by model", model.variations, codes, 2)
    unknown = diffae.Codes(codes.z_sem, codes.x_T)
    refused("z_sem in this set of codes is of width 32", model.decode, unknown)
    refused("no attribute classifier", other.edit, faces[:1], {"Smiling": 1})


def test_codes_that_cannot_be(model, faces):
    codes = model.encode(faces[:2], steps=2)
    refused("z_sem is an array of float64", diffae.Codes, codes.z_sem.astype(np.float64))
    refused("there is neither z_sem nor x_T", diffae.Codes)
    refused("2 codes z_sem, but 1 noise maps x_T", diffae.Codes, codes.z_sem, codes.x_T[:1])
    refused("no exact chain that it belongs to", diffae.Codes, codes.z_sem, codes.x_T, residual=codes.residual)
    refused("does not fit x_T", diffae.Codes, codes.z_sem, residual=codes.residual, chain=codes.chain)
    refused("the chain is .*expected a dict", diffae.Codes, codes.z_sem, codes.x_T, chain={"kind": "long"})
    refused("the chain is 'exact', expected a dict", diffae.Codes, codes.z_sem, codes.x_T, chain="exact")
    nan = codes.z_sem.copy()
    nan[1, 3] = np.nan
    refused("z_sem holds a value that is not finite", diffae.Codes, nan)
    with pytest.raises(TypeError, match="noise"):
        diffae.Codes(codes.z_sem, noise=1)


def test_edits_and_numbers_that_cannot_be(model, faces):
    codes = model.encode(faces[:2], steps=2)
    refused("edits is an empty dict", model.edit, codes, {})
    refused("the strength of an edit is inf", model.edit, codes, {"Smiling": float("inf")})
    refused("the strength of Smiling is much", model.edit, codes, {"Smiling": "much"})
    refused("given twice", model.edit, codes, {"Smiling": 0.1, "smiling": 0.2})
    refused("1 frames", model.interpolate, codes[0], codes[1], 1)
    refused("2 and 1 pictures", model.interpolate, codes, codes[1], 3)
    refused("variations is none", model.variations, codes, 0)
    refused("hold no x_T", model.decode, model.encode(faces[:1], semantic_only=True))
    refused("codes is of type ndarray, expected diffae.Codes", model.decode, faces)
