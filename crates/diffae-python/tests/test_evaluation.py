"""Reports: those of the program."""

import json
import os
import re
import shutil

import diffae
import pytest


def test_reports_are_the_programs(model, face_files, program, tmp_path):
    for measure, options, settings in [
        ("recon", ["--steps", "2"], {"steps": [2]}),
        ("inversion", ["--exact-steps", "2", "--ddim", "2:2"], {"exact_steps": [2]}),
        ("z_usage", ["--steps", "2"], {"steps": 2}),
    ]:
        name = measure.replace("_", "-")
        words = ["eval", name, "--model", "toonheads", "--data", face_files, "--out", tmp_path / measure, *options]
        theirs = json.loads(program(*words, "--json").stdout)
        ours = model.evaluate(measure, face_files, **settings)
        assert (ours["measure"], ours["software"]) == (theirs["measure"], theirs["software"])
        # Python leaves out the chains of ddim where it is given exact ones.
        assert ours["figures"] == [figure for figure in theirs["figures"] if not is_of_ddim(figure)]


def is_of_ddim(figure):
    return figure.get("of", {}).get("chain", "").startswith("DDIM")


def test_a_report_is_kept_and_resumed(checkpoint, drawings, tmp_path):
    model, told = diffae.load(checkpoint, device="cpu"), []

    def evaluate(folder, stop_after=None, steps=2):
        def progress(done, total):
            told.append((done, total))
            if done == stop_after:
                raise InterruptedError("later")

        told.clear()
        settings = {"steps": [steps], "limit": 12, "batch_size": 1, "out": tmp_path / folder, "progress": progress}
        return model.evaluate("recon", drawings[0], **settings)

    whole = evaluate("whole")
    of_whole = list(told)
    total = of_whole[-1][1]
    # The pictures of the sheet are decoded again: the first eight, with six calls each.
    with pytest.raises(InterruptedError):
        evaluate("report", stop_after=6 * 11)
    report = evaluate("report")
    expected = [(done, total) for done in (54, 60)]  # pictures nine and ten, each at once
    assert [numbers for numbers in told if 6 * 8 < numbers[0] <= 6 * 10] == expected
    assert len(told) < len(of_whole) and told[-1] == of_whole[-1] == (total, total)
    assert report["figures"] == whole["figures"]
    assert json.loads((tmp_path / "report/recon.json").read_text()) == report
    with pytest.raises(diffae.InvalidInput, match="other"):
        evaluate("report", steps=3)


def test_progress_of_an_evaluation_has_a_total(model, face_files):
    told = []
    model.evaluate("z_usage", face_files, steps=2, progress=lambda *numbers: told.append(numbers))
    assert told and all(total > 0 for _, total in told)


def test_what_is_measured_is_the_model_that_was_loaded(checkpoint, face_files, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(checkpoint, tmp_path / "model.ckpt")
    monkeypatch.chdir(tmp_path)
    model = diffae.load("model.ckpt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = model.evaluate("recon", face_files, steps=[2], limit=1)
    assert report["settings"]["model"] == model.fingerprint
    shutil.copy(checkpoint.parents[1] / "autoenc32/last.ckpt", "other.ckpt")
    os.replace("other.ckpt", tmp_path / "model.ckpt")
    with pytest.raises(diffae.InvalidInput, match=f"now; what was loaded was model {model.fingerprint}"):
        model.evaluate("recon", face_files, steps=[2], limit=1)


def test_what_cannot_be_measured(model, face_files, tmp_path):
    with pytest.raises(diffae.InvalidInput, match="the measure is \"beauty\", expected recon, inversion or z_usage"):
        model.evaluate("beauty", face_files)
    with pytest.raises(diffae.InvalidInput, match="missing"):
        model.evaluate("recon", tmp_path / "missing")
    common = "out, limit, seed, overwrite, batch_size, threads, progress"
    for measure, wrong, own in [
        ("recon", "exact_steps", "steps, invert_steps, sampler"),
        ("inversion", "steps", "exact_steps"),
        ("z_usage", "invert_steps", "steps, sampler"),
    ]:
        call = re.escape(f'evaluate("{measure}") got an unexpected keyword argument "{wrong}"; there are {own}, {common}')
        with pytest.raises(TypeError, match=f"^{call}$"):
            model.evaluate(measure, face_files, **{wrong: [2]})
    with pytest.raises(diffae.InvalidInput, match="steps is 3, expected a list"):
        model.evaluate("recon", face_files, steps=3)
