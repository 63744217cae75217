"""Some episodes once more, with the cameras on: they repeat exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlaad_ray.configs import Location, UserError
from vlaad_ray.evaluate import video
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.types import Episode, Outcome

VIDEO_EVERY = 2
"""Control steps between two frames of a video."""


def choose(specs: Sequence[EpisodeSpec], outcomes: Mapping[str, Outcome], each: int) -> list[EpisodeSpec]:
    """Up to `each` successes and as many failures, spread over the evaluation, to be filmed."""
    chosen: list[EpisodeSpec] = []
    for wanted in (True, False):
        matching = [spec for spec in specs if outcomes[spec.key.name].success_ever == wanted]
        chosen += matching[:: max(1, len(matching) // each)][:each] if each else []
    return [replace(spec, image_every=VIDEO_EVERY) for spec in chosen]


def file_name(spec: EpisodeSpec) -> str:
    return f"{spec.key.name}.mp4"


def store_video(folder: Location, episode: Episode) -> str | None:
    """On the actor: write the recorded frames as MP4; or say why that failed, which must not end the job."""
    word = "success" if episode.success_ever else "failure"
    frames = []
    for step in range(0, len(episode), VIDEO_EVERY):
        seen = {camera: frames_of[step] for camera, frames_of in episode.images.items()}
        images = {camera: image for camera, image in seen.items() if image is not None}
        frames.append(video.frame(images, f"{word} · step {step} · {episode.instruction[:60]}"))
    try:
        video.write_mp4(folder / f"{episode.key.name}.mp4", frames, episode.embodiment.rate_hz / VIDEO_EVERY)
    except (video.VideoError, UserError) as error:
        return str(error)
    return None
