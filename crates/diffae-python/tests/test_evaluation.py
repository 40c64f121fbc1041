"""Reports: those of the program."""

import json

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


def test_a_report_is_kept_and_resumed(model, face_files, tmp_path):
    told = []

    def stop(done, total):
        told.append((done, total))
        if done > 4:
            raise InterruptedError("later")

    with pytest.raises(InterruptedError):
        model.evaluate("recon", face_files, steps=[2], batch_size=1, out=tmp_path / "report", progress=stop)
    report = model.evaluate("recon", face_files, steps=[2], batch_size=1, out=tmp_path / "report")
    assert json.loads((tmp_path / "report/recon.json").read_text()) == report
    assert told
    with pytest.raises(diffae.InvalidInput, match="other"):
        model.evaluate("recon", face_files, steps=[3], out=tmp_path / "report")


def test_what_cannot_be_measured(model, face_files, tmp_path):
    with pytest.raises(diffae.InvalidInput, match="the measure is \"beauty\", expected recon, inversion or z_usage"):
        model.evaluate("beauty", face_files)
    with pytest.raises(diffae.Error):
        model.evaluate("recon", tmp_path / "missing")
    with pytest.raises(diffae.InvalidInput, match="steps is 3, expected a list"):
        model.evaluate("recon", face_files, steps=3)
