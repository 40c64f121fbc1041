"""Codes: those of the program to the bit, as arrays, as files, and in other processes."""

import json
import pickle
import struct
from types import MappingProxyType

import diffae
import numpy as np
import pytest


def read_safetensors(path):
    """Returns the text of a file of codes, and the bytes of its tensors by name."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = header.pop("__metadata__")
    start = 8 + length
    tensors = {
        name: (entry["shape"], data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]])
        for name, entry in header.items()
    }
    return text, tensors


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--steps", "3", "--batch-size", "2"], {"steps": 3, "batch_size": 2}),
        (["--inversion", "fixed-point", "--steps", "2"], {"inversion": "fixed-point", "steps": 2}),
        (["--inversion", "ddim", "--steps", "4"], {"inversion": "ddim", "steps": 4}),
        (["--steps", "2", "--threads", "1"], {"steps": 2, "threads": 1}),
        (["--semantic-only"], {"semantic_only": True}),
    ],
    ids=["defaults", "steps", "fixed-point", "ddim", "one thread", "semantic"],
)
def test_files_are_those_of_the_program(model, faces, face_files, program, tmp_path, options, settings):
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    program("encode", "--model", "toonheads", face_files, "--out", theirs, *options)
    names = [f"face_{number}" for number in range(3)]
    codes = model.encode(faces[:3], names=names, **settings)
    codes.save(ours)
    (their_text, their_tensors), (our_text, our_tensors) = read_safetensors(theirs), read_safetensors(ours)
    assert our_tensors == their_tensors
    assert "diffae:command" in their_text
    del their_text["diffae:command"]
    assert our_text == their_text
    read = diffae.Codes.open(theirs)
    assert read.names == names
    read.save(tmp_path / "again.safetensors")
    assert read_safetensors(tmp_path / "again.safetensors") == (our_text, our_tensors)


def test_codes_are_float32_arrays_that_cannot_be_written_to(model, faces):
    codes = model.encode(faces[:2], steps=2)
    assert (codes.z_sem.dtype, codes.x_T.dtype, codes.residual.dtype) == (np.float32,) * 3
    assert codes.x_T.shape == codes.residual.shape == (2, 3, 64, 64)
    assert codes.z_sem.shape[0] == len(codes) == 2
    assert codes.z_sem is codes.z_sem, "the array is made once"
    with pytest.raises(ValueError, match="read-only"):
        codes.z_sem[0] = 0
    assert codes.chain == {"kind": "exact", "steps": 2, "spacing": "log-snr", "weights": "balanced"}
    assert codes.fingerprint == model.fingerprint
    assert model.encode(faces[:1], semantic_only=True).x_T is None
    assert model.encode(faces[:1], inversion="ddim", steps=2).chain is None


def test_codes_of_samples_are_decoded_as_they_were(model):
    chain = {"kind": "sampled", "steps": 3, "spacing": "karras", "sampler": "dpm++2m"}
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    z_sem = model.encode(model.sample(1, steps=2), semantic_only=True).z_sem
    codes = diffae.Codes(z_sem, noise, chain=chain, fingerprint=model.fingerprint)
    assert codes.chain == chain
    without = diffae.Codes(z_sem, noise, fingerprint=model.fingerprint)
    expected = model.decode(without, steps=3, spacing="karras", sampler="dpm++2m")
    np.testing.assert_array_equal(model.decode(codes), expected)
    seven = model.decode(without, steps=7, spacing="karras", sampler="dpm++2m")
    np.testing.assert_array_equal(model.decode(codes, steps=7), seven)
    with pytest.raises(diffae.InvalidInput, match="the chain"):
        diffae.Codes(z_sem, noise, chain={**chain, "sampler": "euler"})


def test_noise_of_another_kind_is_warned_of(model, faces):
    z_sem = model.encode(faces[:1], semantic_only=True).z_sem
    uniform = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with pytest.warns(UserWarning, match="standard normal noise"):
        model.decode(diffae.Codes(z_sem, uniform), steps=2)


def test_no_picture_depends_on_its_batch(model, faces):
    together = model.encode(faces[:3], steps=2, batch_size=3)
    alone = model.encode(faces[2:3], steps=2)
    np.testing.assert_array_equal(together.x_T[2:], alone.x_T)
    np.testing.assert_array_equal(together[2].z_sem, alone.z_sem)
    np.testing.assert_array_equal(together[-1].residual, alone.residual)


def test_codes_are_chosen_and_joined(model, faces):
    codes = model.encode(faces[:3], steps=2, names=["a", "b", "c"])
    assert (codes[1].names, codes[1:].names, codes[::-1].names) == (["b"], ["b", "c"], ["c", "b", "a"])
    joined = diffae.Codes.join([codes[2], codes[:2]])
    assert joined.names == ["c", "a", "b"]
    np.testing.assert_array_equal(joined.x_T, codes.x_T[[2, 0, 1]])
    with pytest.raises(IndexError, match="there are no codes 3, only 3"):
        codes[3]
    with pytest.raises(diffae.InvalidInput, match="do not go together"):
        diffae.Codes.join([codes, model.encode(faces[:1], steps=3)])
    with pytest.raises(diffae.InvalidInput, match="x_T of codes that are joined is 1 of 2 codes"):
        diffae.Codes.join([diffae.Codes(codes.z_sem, codes.x_T), diffae.Codes(codes.z_sem)])
    with pytest.raises(diffae.InvalidInput, match="z_sem of shapes .* do not go together"):
        diffae.Codes.join([diffae.Codes(codes.z_sem), diffae.Codes(np.ascontiguousarray(codes.z_sem[:, 1:]))])
    with pytest.raises(diffae.InvalidInput, match="the number of codes to join is 0"):
        diffae.Codes.join([])
    with pytest.raises(diffae.InvalidInput):
        codes[1:1]
    assert len(list(codes)) == 3


def test_notes_that_codes_share_are_kept(model, faces, tmp_path):
    def notes(codes):
        codes.save(tmp_path / "codes.safetensors", overwrite=True)
        text = read_safetensors(tmp_path / "codes.safetensors")[0]
        return {name: value for name, value in text.items() if name.startswith("diffae:") or name == "Software"}

    codes = model.encode(faces[:2], steps=2, names=["a", "b"])
    expected = notes(codes)
    assert expected["Software"] == f"diffae {diffae.__version__}"
    assert (expected["diffae:model"], expected["diffae:inversion"]) == (model.fingerprint, "exact")
    assert notes(model.edit_codes(codes, {"Smiling": 0.1})) == expected
    assert notes(diffae.Codes.join([codes[1], codes[0]])) == expected
    ddim = [model.encode(faces[:1], inversion="ddim", steps=steps) for steps in (2, 3)]
    assert notes(diffae.Codes.join(ddim)) == {k: v for k, v in notes(ddim[0]).items() if k != "diffae:steps"}


def test_codes_of_an_exact_chain_without_a_residual_have_one_of_zeros(model, faces):
    codes = model.encode(faces[:2], steps=2)
    parts = {"names": codes.names, "fingerprint": codes.fingerprint}
    bare = diffae.Codes(codes.z_sem, codes.x_T, chain=codes.chain, **parts)
    np.testing.assert_array_equal(bare.residual, np.zeros_like(codes.x_T))
    joined = diffae.Codes.join([bare, codes])
    np.testing.assert_array_equal(joined.residual, np.concatenate([bare.residual, codes.residual]))
    np.testing.assert_array_equal(model.decode(joined[2:]), model.decode(codes))
    assert diffae.Codes(codes.z_sem, chain=codes.chain, **parts).residual is None


def test_mappings_are_as_good_as_dicts(model, faces):
    codes = model.encode(faces[:1], steps=2)
    edits = MappingProxyType({"Smiling": 0.1})
    np.testing.assert_array_equal(model.edit(codes, edits), model.edit(codes, dict(edits)))
    np.testing.assert_array_equal(model.edit_codes(codes, edits).z_sem, model.edit_codes(codes, dict(edits)).z_sem)
    parts = {"residual": codes.residual, "names": codes.names, "fingerprint": codes.fingerprint}
    assert diffae.Codes(codes.z_sem, codes.x_T, chain=MappingProxyType(codes.chain), **parts).chain == codes.chain


def test_codes_put_together_from_arrays_are_the_same(model, faces):
    codes = model.encode(faces[:2], steps=2)
    parts = {"residual": codes.residual, "chain": codes.chain, "names": codes.names, "fingerprint": codes.fingerprint}
    again = diffae.Codes(codes.z_sem, codes.x_T, **parts)
    np.testing.assert_array_equal(model.decode(again), model.decode(codes))
    assert repr(again) == repr(codes)


@pytest.mark.parametrize("inversion", ["exact", "fixed-point", "ddim"])
def test_codes_are_pickled_by_value(model, faces, inversion):
    codes = model.encode(faces[:2], steps=2, inversion=inversion, names=["a", "b"])
    buffers = []
    again = pickle.loads(pickle.dumps(codes, protocol=5, buffer_callback=buffers.append), buffers=buffers)
    assert buffers, "arrays are handed over, not copied into the pickle"
    assert (again.names, again.chain, again.fingerprint) == (codes.names, codes.chain, codes.fingerprint)
    np.testing.assert_array_equal(again.x_T, codes.x_T)
    np.testing.assert_array_equal(model.decode(again, seed=1), model.decode(codes, seed=1))


def test_a_file_is_not_replaced_unless_that_is_asked_for(model, faces, tmp_path):
    codes, path = model.encode(faces[:1], semantic_only=True), tmp_path / "codes.safetensors"
    codes.save(path)
    with pytest.raises(diffae.InvalidInput, match="exists already; use overwrite=True to replace it"):
        codes.save(path)
    codes.save(str(path), overwrite=True)
    with pytest.raises(diffae.InvalidInput, match="a name that ends in .safetensors"):
        codes.save(tmp_path / "codes.npz")
    with pytest.raises(diffae.Failure, match="cannot access"):
        codes.save(tmp_path / "missing" / "codes.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["codes.safetensors"]


def test_x_t_is_random_unless_a_polished_model_has_endpoints(model, faces):
    codes = model.encode(faces[:1], semantic_only=True)
    for call in (lambda: model.decode(codes, x_T="endpoint"), lambda: model.sample(1, x_T="endpoint")):
        with pytest.raises(diffae.InvalidInput, match="diffae polish"):
            call()
    with pytest.raises(diffae.InvalidInput, match="random or endpoint"):
        model.sample(1, x_T="noise")
    steps = {"steps": 2, "latent_steps": 2}
    np.testing.assert_array_equal(model.sample(1, x_T="random", **steps), model.sample(1, **steps))
