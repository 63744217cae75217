"""OpenVLA's images: from LIBERO's camera to the network's input, against values worked out apart from the code."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla import preprocess, random_checkpoint
from vlaad_ray.models.openvla.settings import parse_normalisation
from vlaad_ray.teachers.openvla import normalise


def test_an_upright_image_is_mirrored() -> None:
    """LIBERO's raw image is upside down; the authors rotate it by 180 degrees. Ours is upright already."""
    raw = np.zeros((256, 256, 3), np.uint8)
    raw[:128, :128] = 255  # a corner of the raw image
    rotated = np.rot90(raw, 2)
    upright = raw[::-1]
    prepared = preprocess.prepare_image(upright, 224)
    assert prepared[200, 200].tolist() == rotated[230, 230].tolist() == [255, 255, 255]
    assert prepared[20, 20].max() == prepared[20, 200].max() == prepared[200, 20].max() == 0


def lanczos3(x: float) -> float:
    """sinc(x) sinc(x/3), as in Duchon 1979."""
    if x == 0:
        return 1.0
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2 if abs(x) < 3 else 0.0


def test_resize_is_lanczos3_with_antialiasing() -> None:
    """Pillow's resize of that name rounds between its passes; cubic, or not antialiased, is off by tens of levels."""
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    resized = preprocess.resize_lanczos3(image, 224)
    scale = 256 / 224
    for row, column in ((0, 0), (0, 223), (1, 100), (57, 3), (112, 112), (223, 223)):
        weights = [
            np.array([lanczos3((source + 0.5 - (target + 0.5) * scale) / scale) for source in range(256)])
            for target in (row, column)
        ]
        rows, columns = (weight / weight.sum() for weight in weights)
        exact = np.einsum("h,w,hwc->c", rows, columns, image.astype(np.float64)).clip(0, 255)
        # Half a level from rounding; the rest is float32.
        np.testing.assert_allclose(resized[row, column], exact, atol=0.5 + 1e-3)


def test_centre_crop_box() -> None:
    """sqrt(0.9) of each side, worked out by hand: pixel i of the result lies at 5.721746 + 0.948683 i of the source."""
    ramp = np.tile(np.arange(224, dtype=np.uint8)[None, :, None], (224, 1, 3))
    cropped = preprocess.centre_crop(ramp)
    for i, at in ((0, 5.721746), (100, 100.590076), (223, 217.278254)):
        assert cropped[50, i].tolist() == [math.floor(at / 255 * 255.5)] * 3
    np.testing.assert_array_equal(cropped, np.swapaxes(preprocess.centre_crop(ramp.swapaxes(0, 1)), 0, 1))


def pattern() -> np.ndarray:
    """[256, 256, 3] a picture in integers, so that other programs can make it too."""
    rows, columns, channels = np.mgrid[:256, :256, :3]
    return ((rows * columns // 64 + 40 * channels + 2 * np.abs(rows - columns)) % 256).astype(np.uint8)


def test_jpeg_round_trip_is_tensorflows_to_the_bit() -> None:
    """The hash is of what TensorFlow 2.21's decode_image(encode_jpeg(pattern())) gives."""
    decoded = preprocess.jpeg_round_trip(pattern())
    assert (
        hashlib.sha256(decoded.tobytes()).hexdigest()
        == "b6e8b770bacb3a2d8201001c51b445516662312d944c04310ba79f82c9634a7d"
    )


def test_prepared_image_is_tensorflows() -> None:
    """The numbers are pixels [5::70, 9::70] that TensorFlow 2.21 gave for the authors' sequence on pattern()."""
    expected = [
        [[11, 50, 91], [171, 215, 44], [87, 126, 167], [211, 49, 93]],
        [[168, 205, 248], [136, 175, 216], [135, 174, 215], [135, 175, 212]],
        [[81, 120, 161], [123, 162, 203], [179, 218, 30], [14, 57, 98]],
        [[224, 47, 86], [128, 168, 205], [45, 27, 67], [151, 197, 231]],
    ]
    prepared = preprocess.prepare_image(pattern()[:, ::-1], 224)
    # One level: sums in another order may round the other way.
    np.testing.assert_allclose(prepared[5::70, 9::70].astype(int), expected, atol=1)


def test_channels_are_stacked_tower_by_tower() -> None:
    """By hand: a pixel of 128, 64, 255, normalised with the means and deviations of the published processor."""
    image = torch.tensor([128, 64, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    pixels = normalise(image, parse_normalisation(random_checkpoint.PREPROCESSOR_JSON, "test"))
    assert pixels.shape == (1, 6, 2, 2)
    expected = [0.076957, -0.912647, 2.643478, 0.003922, -0.498039, 1.0]
    np.testing.assert_allclose(pixels[0, :, 1, 1], expected, atol=2e-6)


def test_a_checkpoint_stores_means_as_they_are_and_what_is_computed_with_rounded() -> None:
    """The authors' conversion script makes tensors of ImageNet's and SigLIP's values under a default dtype of bf16. A
    test checkpoint with the same numbers in both fields would not show which of them is read.
    """
    stored = random_checkpoint.PREPROCESSOR_JSON
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for tower, (mean, std) in enumerate((imagenet, ([0.5] * 3, [0.5] * 3))):
        assert (stored["means"][tower], stored["stds"][tower]) == (mean, std)
        computed_with = stored["tvf_normalize_params"][tower]
        assert computed_with["mean"] == torch.tensor(mean).bfloat16().tolist()
        assert computed_with["std"] == torch.tensor(std).bfloat16().tolist()


def test_stored_normalisation_counts_before_means_and_stds() -> None:
    """Means instead of what was stored move pixels by up to 0.008, and on images that matter other tokens win."""
    stored = {**random_checkpoint.PREPROCESSOR_JSON, "means": [[0.1] * 3] * 2, "stds": [[0.9] * 3] * 2}
    rounded = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
    assert parse_normalisation(stored, "test") == preprocess.Normalisation(
        (rounded[0], (0.5, 0.5, 0.5)), (rounded[1], (0.5, 0.5, 0.5))
    )
    del stored["tvf_normalize_params"]
    assert parse_normalisation(stored, "test") == preprocess.Normalisation(
        ((0.1, 0.1, 0.1),) * 2, ((0.9, 0.9, 0.9),) * 2
    )


@pytest.mark.parametrize("number", ["0.5", None, math.nan, [0.5]])
def test_statistics_of_pixels_that_are_no_numbers_are_refused(number: object) -> None:
    rows = [[0.5, 0.5, 0.5], [0.5, number, 0.5]]
    for stored in (
        {"means": rows, "stds": rows},
        {"tvf_normalize_params": [{"mean": row, "std": row} for row in rows]},
    ):
        with pytest.raises(UserError, match="must hold three numbers for each of two towers"):
            parse_normalisation(stored, "test")


def test_a_deviation_of_zero_is_refused() -> None:
    """It would fill the image with infinities, and the policy would still answer."""
    with pytest.raises(UserError, match="deviations above 0"):
        parse_normalisation({"means": [[0.5] * 3] * 2, "stds": [[0.5] * 3, [0.5, 0.0, 0.5]]}, "test")
