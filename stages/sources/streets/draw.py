"""One street scene as pixels: what a camera with its own faults makes of what stands in the scene."""

import numpy as np

from stages.sources.streets import scene
from stages.sources.streets.canvas import Canvas, Dice

COARSE = 256  # up to this height every pixel is the mean of 2 x 2 samples; above it thin things are wide enough by themselves


def draw(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 (H, W, 3), label uint8 (H, W)) of scene `index`; at another size it is the same scene in other pixels."""
    dice = Dice(seed, split, index)
    camera, light, ground = scene.camera(dice), scene.weather(dice), scene.ground(dice)
    canvas = Canvas(camera, light, ground, size, 2 if size[0] <= COARSE else 1)
    scene.build(canvas, dice)
    image, label = canvas.shade()
    return expose(image, Dice(seed, split, index, stream=1)), label


def expose(image: np.ndarray, dice: Dice) -> np.ndarray:
    """White balance, contrast, vignette and sensor noise. float32 (H, W, 3) in 0..1 -> uint8."""
    h, w, _ = image.shape
    gain = np.float32([dice.between(0.85, 1.15) for _ in range(3)]) * dice.between(1.05, 1.5)
    gamma, fall, sigma = dice.between(0.8, 1.15), dice.between(0, 0.35), dice.between(0.006, 0.028)
    v, u = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    image = np.clip(image * gain, 0, 1) ** np.float32(gamma)
    image *= (1 - fall * (v * v + u * u) / 2)[..., None]
    noise = dice.uniform(image.shape, dtype=np.float32) + dice.uniform(image.shape, dtype=np.float32) - 1  # deviation 0.41
    return np.clip((image + noise * np.float32(2.45 * sigma)) * 255 + 0.5, 0, 255).astype(np.uint8)
