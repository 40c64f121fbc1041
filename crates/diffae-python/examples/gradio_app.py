"""A page that edits a face: `python gradio_app.py [MODEL]`, then open the address that it prints."""

import sys

import diffae
import gradio
import numpy as np


def make_app(path: str = "toonheads") -> gradio.Blocks:
    model = diffae.load(path)
    strengths = {name: full or 0.3 for name, full in model.directions.items()}

    def edit(picture: np.ndarray, attribute: str, share: float, progress=gradio.Progress()) -> np.ndarray:
        if picture is None:
            raise gradio.Error("there is no picture yet")
        try:
            pictures = np.ascontiguousarray(picture[None, ..., :3])
            return model.edit(pictures, {attribute: share * strengths[attribute]}, progress=lambda *at: progress(at))[0]
        except diffae.InvalidInput as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        edit,
        inputs=[
            gradio.Image(type="numpy", image_mode="RGB"),
            gradio.Dropdown(list(strengths), value=next(iter(strengths)), label="attribute"),
            gradio.Slider(-1.5, 1.5, value=1.0, label="share of a full edit"),
        ],
        outputs=gradio.Image(type="numpy", format="png"),
        title="Edit a face",
        api_name="edit",
    )


if __name__ == "__main__":
    make_app(*sys.argv[1:]).launch()
