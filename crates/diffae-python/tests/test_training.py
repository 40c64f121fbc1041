"""Training: the program's weights to the bit, stopped and resumed, by Ctrl-C, too."""

import signal
import subprocess
import sys
import textwrap
from types import MappingProxyType

import diffae
import pytest
from conftest import HEARS_CTRL_C

SHORT = {
    "autoencoder": {"images": 48, "batch_size": 8},
    "latent": {"images": 64, "batch_size": 8},
    "classifier": {"images": 64, "batch_size": 8},
    "data": {"validation_share": 0.2},
}


def options():
    pairs = [(f"{table}.{key}", value) for table, keys in SHORT.items() for key, value in keys.items()]
    return [word for key, value in pairs for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def trained(program, drawings, tmp_path_factory):
    """A run of the program."""
    data, labels = drawings
    run = tmp_path_factory.mktemp("runs") / "program"
    threads = ["--threads", "1"]
    program("train", "--preset", "smoke", *options(), "--data", data, "--labels", labels, *threads, "--out", run)
    return run


def test_a_run_is_the_programs_to_the_bit(trained, drawings, tmp_path):
    data, labels = drawings
    told = []
    inputs = {"data": data, "labels": labels, "threads": 1}
    outcome = diffae.train({"extends": "smoke", **SHORT}, told.append, **inputs, out=tmp_path / "run")
    assert outcome == "finished"
    for file in ["model.safetensors", "classifier.safetensors", "config.json", "train.toml"]:
        if (trained / file).exists():
            assert (tmp_path / "run" / file).read_bytes() == (trained / file).read_bytes(), file
    assert (tmp_path / "run/model.safetensors").exists()
    training = [step for step in told if step["work"] == "training"]
    assert {step["stage"] for step in training} == {"autoencoder", "latent", "classifier"}
    assert training[0].keys() == {"stage", "work", "step", "num_steps", "loss", "batch"}
    first = [step for step in training if step["stage"] == "autoencoder"]
    assert [step["step"] for step in first] == list(range(1, 7)) and first[0]["num_steps"] == 6
    assert all(step["loss"] > 0 for step in first)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(trained, drawings, tmp_path):
    data, labels = drawings
    run, inputs = tmp_path / "run", {"data": data, "labels": labels, "threads": 1}
    config = {"extends": "smoke", **SHORT}

    def until_the_third(step):
        return step["step"] < 3

    assert diffae.train(config, until_the_third, **inputs, out=run) == "stopped"
    assert diffae.train(out=run, resume=True, threads=1) == "finished"
    assert (run / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    model = diffae.load(run)
    assert list(model.directions) == ["Red"] and model.image_shape == (3, 16, 16)


@pytest.fixture
def begun(drawings, tmp_path):
    """A run that has stopped after two steps."""
    data, labels = drawings
    inputs = {"data": data, "labels": labels, "freeze": ["encoder"], "out": tmp_path / "begun", "threads": 1}
    assert diffae.train({"extends": "smoke", **SHORT}, lambda step: step["step"] < 2, **inputs) == "stopped"
    return tmp_path / "begun"


def test_what_is_given_again_agrees_with_the_run(begun, drawings, tmp_path, monkeypatch):
    data, _ = drawings
    for inputs, message in [
        ({"data": tmp_path}, f"the run was started with data {data}, not {tmp_path}"),
        ({"init_from": "toonheads"}, "the run was started without init_from, not with toonheads"),
        ({"freeze": ["unet"]}, r'the run was started with freeze \["encoder"\], not \["unet"\]'),
        ({"freeze": []}, r'the run was started with freeze \["encoder"\], not \[\]'),
        ({"labels": tmp_path / "none.csv"}, "none.csv"),
        ({"settings": {"data.validation_share": 0.5}}, "the run was started with data.validation_share = 0.2"),
    ]:
        for config in (None, {"extends": "smoke", **SHORT}):
            steps = []
            with pytest.raises(diffae.InvalidInput, match=message):
                diffae.train(config, steps.append, out=begun, resume=True, threads=1, **inputs)
            assert not steps
    monkeypatch.chdir(data.parent)
    again = {"data": data.name, "labels": f"{data.name}.csv", "freeze": ["encoder"], "threads": 1}
    longer = {"extends": "smoke", **SHORT, "autoencoder": {"images": 64, "batch_size": 8}}
    steps = []
    assert diffae.train(longer, steps.append, out=begun, resume=True, **again) == "finished"
    assert {step["num_steps"] for step in steps if step["stage"] == "autoencoder"} == {8}


@pytest.mark.parametrize("config", [None, "smoke", {"extends": "smoke", **SHORT}], ids=["none", "preset", "dict"])
def test_a_mistyped_run_is_not_begun(drawings, tmp_path, config):
    data, _ = drawings
    with pytest.raises(diffae.InvalidInput, match="there is no run to resume"):
        diffae.train(config, data=data, out=tmp_path / "rum", resume=True)
    assert not (tmp_path / "rum").exists()


def test_training_takes_no_settings_that_it_does_not_use(drawings, tmp_path):
    data, _ = drawings
    for wrong in [{"batch_size": 3}, {"progress": print}]:
        with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument"):
            diffae.train("smoke", data=data, out=tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_the_run(trained, drawings, tmp_path):
    data, labels = drawings
    script = f"""
        import diffae
        def on_step(step):
            if step["step"] == 2:
                print("now", flush=True)
        config = {{"extends": "smoke", **{SHORT!r}}}
        try:
            diffae.train(config, on_step, data={str(data)!r}, labels={str(labels)!r}, threads=1, out="run")
        except KeyboardInterrupt:
            print("interrupted")
    """
    child = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C + textwrap.dedent(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGINT)
    try:
        assert child.communicate(timeout=60)[0].splitlines()[-1] == "interrupted"
    finally:
        child.kill()
    assert not (tmp_path / "run/model.safetensors").exists()
    assert diffae.train(out=tmp_path / "run", resume=True, threads=1) == "finished"
    assert (tmp_path / "run/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_configs_are_presets_files_or_dicts(drawings, tmp_path):
    data, _ = drawings
    stop = {"on_step": lambda step: False, "data": data}
    assert "smoke" in diffae.presets()
    settings = {"autoencoder.images": 48, "autoencoder.batch_size": 8, "data.validation_share": 0.2}
    assert diffae.train("smoke", settings=settings, out=tmp_path / "preset", **stop) == "stopped"
    text = (tmp_path / "preset/train.toml").read_text()
    (tmp_path / "config.toml").write_text(text)
    assert diffae.train(tmp_path / "config.toml", out=tmp_path / "file", **stop) == "stopped"
    assert (tmp_path / "file/train.toml").read_text() == text
    nested = {"autoencoder": MappingProxyType({"images": 48, "batch_size": 8}), "data": {"validation_share": 0.2}}
    config = MappingProxyType({"extends": "smoke", **nested})
    assert diffae.train(config, settings=MappingProxyType({}), out=tmp_path / "mapping", **stop) == "stopped"
    assert (tmp_path / "mapping/train.toml").read_text() == text
    tomllib = pytest.importorskip("tomllib", reason="it came with Python 3.11")
    assert diffae.train(tomllib.loads(text), out=tmp_path / "dict", **stop) == "stopped"
    assert (tmp_path / "dict/train.toml").read_text() == text


def test_what_is_wrong_is_said_before_anything_is_trained(drawings, tmp_path):
    data, _ = drawings
    run = {"data": data, "out": tmp_path / "run"}
    for config, message in [
        ({"extends": "smoke", "autoencoder": {"imagez": 3}}, "there is no setting \"autoencoder.imagez\""),
        ({"extends": "smoke", "autoencoder": {"lr": -1.0}}, "lr is -1"),
        ({"autoencoder": {"images": 3}}, "the training config cannot be read"),
        ({"extends": "smoke", "autoencoder": {"images": object()}}, "autoencoder.images is <object"),
        (3, "config is 3, expected the name of a preset"),
        (None, "config is None"),
    ]:
        with pytest.raises(diffae.InvalidInput, match=message):
            diffae.train(config, **run)
    for device, message in [("cuda", "no CUDA backend"), ("gpu", "\"gpu\" is not a device"), (3, "device is 3")]:
        with pytest.raises(diffae.InvalidInput, match=message):
            diffae.train("smoke", device=device, **run)
    for dtype, message in [("bf16", "dtype is bf16, expected f32 on a CPU"), ("f16", "dtype is f16, expected f32 on a CPU"), ("f8", "dtype is \"f8\"")]:
        with pytest.raises(diffae.InvalidInput, match=message):
            diffae.train("smoke", dtype=dtype, **run)
    with pytest.raises(diffae.InvalidInput, match="out is None"):
        diffae.train("smoke", data=data)
    with pytest.raises(diffae.InvalidInput, match="data is None"):
        diffae.train("smoke", out=tmp_path / "run")
    with pytest.raises(diffae.InvalidInput, match="no-config.toml"):
        diffae.train(tmp_path / "no-config.toml", **run)
    assert not (tmp_path / "run").exists()


def test_an_exception_of_the_callback_saves_the_run(drawings, tmp_path):
    data, _ = drawings

    def fail(step):
        if step["step"] == 2:
            raise LookupError("no more")

    config = {"extends": "smoke", **SHORT}
    with pytest.raises(LookupError, match="no more"):
        diffae.train(config, fail, data=data, out=tmp_path / "run", threads=1)
    steps = []
    diffae.train(out=tmp_path / "run", resume=True, threads=1, on_step=steps.append)
    assert steps[0]["work"] == "starting" and steps[0]["step"] == 2
