"""Levels of a hierarchical z_sem: edited and blended apart."""

import diffae
import numpy as np
import pytest
from test_training import SHORT


@pytest.fixture(scope="module")
def levels_model(drawings, tmp_path_factory):
    """A model whose z_sem has parts of 12 and 20 numbers."""
    data, labels = drawings
    run = tmp_path_factory.mktemp("levels") / "run"
    config = {"extends": "smoke", **SHORT, "model": {"z_levels": [12, 20]}}
    inputs = {"data": data, "labels": labels, "threads": 1}
    assert diffae.train(config, lambda step: True, **inputs, out=run) == "finished"
    return diffae.load(run, device="cpu")


def test_an_edit_of_a_level_moves_its_part_alone(levels_model, faces):
    codes = levels_model.encode(faces[:2], check_domain=False)
    whole = levels_model.edit_codes(codes, {"Red": 40.0})
    for levels, part in [([0], slice(0, 12)), ([1], slice(12, 32)), ([], slice(0, 0)), ([0, 1], slice(0, 32))]:
        expected = codes.z_sem.copy()
        expected[:, part] = whole.z_sem[:, part]
        edited = levels_model.edit_codes(codes, {"Red": 40.0}, levels)
        assert np.array_equal(edited.z_sem, expected) and np.array_equal(edited.x_T, codes.x_T)
        pictures = levels_model.edit(codes, {"Red": 40.0}, levels=levels)
        assert np.array_equal(pictures, levels_model.decode(edited)), levels


def test_a_blend_of_a_level_keeps_all_else(levels_model, faces):
    one, other = (levels_model.encode(faces[idx : idx + 1], check_domain=False) for idx in (0, 3))
    frames = levels_model.interpolate(one, other, 3, levels=[1])
    assert np.array_equal(frames[:1], levels_model.decode(one))
    assert not np.array_equal(frames[2:], levels_model.decode(other))
    every = levels_model.interpolate(one, other, 3)
    assert np.array_equal(every[2:], levels_model.decode(other))


def test_levels_that_are_not_there_are_refused(levels_model, model, faces):
    codes = levels_model.encode(faces[:1], check_domain=False)
    with pytest.raises(diffae.InvalidInput, match="there is no level 2 of z_sem: the model has 2"):
        levels_model.edit_codes(codes, {"Red": 1.0}, [2])
    with pytest.raises(diffae.InvalidInput, match="has no levels"):
        model.edit(faces[:1], {"Smiling": None}, levels=[0])
    with pytest.raises(diffae.InvalidInput, match="levels"):
        levels_model.interpolate(codes, codes, 2, levels="coarse")
