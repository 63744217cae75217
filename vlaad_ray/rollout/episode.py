"""The one loop in which a policy acts in an environment: collection, evaluation and videos all run it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlaad_ray.configs import NoiseConfig, TeacherNoiseConfig
from vlaad_ray.envs import Env
from vlaad_ray.rollout.dagger import Guided
from vlaad_ray.rollout.noise import ActionNoise, TeacherNoise
from vlaad_ray.types import ActionChunk, Embodiment, Episode, EpisodeKey, Observation, Policy

RELEASE_STEPS = 40
"""After the goal is first true, the policy may act this much longer to let go and retreat."""
OPEN_STEPS = 10
"""The gripper has let go once it was commanded open for this many steps in a row (0.5 s)."""


@dataclass(frozen=True)
class EpisodeSpec:
    """One unit of work: which episode to run and how."""

    key: EpisodeKey
    image_every: int = 0
    """Record images every n-th step; 0: none (a policy that needs images still gets them when it is asked)."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """On what is executed."""
    teacher_noise: TeacherNoiseConfig = field(default_factory=TeacherNoiseConfig)
    """On what the policy asks for, and so on what is recorded."""
    budget: int | None = None
    """Steps until the goal must have been true; None: the suite's."""


def run_episode(env: Env, policy: Policy, spec: EpisodeSpec) -> Episode:
    """Let `policy` act from the start that `spec.key` names until the goal is reached and let go of, or time is up.

    "Ever": the goal was true after some step within the budget. "Final": it still is once the gripper has let go,
    for which the policy gets RELEASE_STEPS more; if it does not open the gripper by itself, we do. Without a gripper
    there is nothing to let go of: the episode ends when the goal is reached, and both are the same.

    Where a student acts until `policy`, its teacher, takes over (rollout.dagger), the budget counts from there, and
    there is noise only on what the teacher does.
    """
    body = env.embodiment
    env.reset(spec.key.init, spec.key.seed)
    if isinstance(policy, Guided):
        policy.begin(spec.key.name)
    policy.reset(env.instruction)
    teacher_noise, noise = TeacherNoise(spec.teacher_noise, spec.key, body), ActionNoise(spec.noise, spec.key, body)
    budget = spec.budget or env.budget
    proprio: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    phases: list[str | None] = []
    images: dict[str, list[np.ndarray | None]] = {camera: [] for camera in body.cameras}
    taught: list[bool] = []
    chunk: list[tuple[np.ndarray, np.ndarray]] = []
    answer = ActionChunk(np.zeros((0, body.action_dim)))
    success_step: int | None = None
    open_for = 0

    while len(actions) < budget if success_step is None else _is_holding(body, len(actions) - success_step, open_for):
        record = spec.image_every > 0 and len(actions) % spec.image_every == 0
        observation = env.observe(images=record or (not chunk and policy.needs_images))
        check_observation(observation, body)
        if not chunk:
            answer = policy.infer(observation)
            targets = answer.actions if answer.targets is None else answer.targets
            chunk = [
                (check_action(action, body), check_action(target, body))
                for action, target in zip(answer.actions, targets, strict=True)
            ]
            if answer.taught and not any(taught):
                budget += len(actions)
        meant, target = chunk.pop(0)
        action = teacher_noise.apply(target) if answer.taught else target
        proprio.append(observation.proprio)
        actions.append(action)
        teacher_acts = answer.taught and answer.targets is None
        executed.append(noise.apply(action, answer.phase) if teacher_acts else meant)
        phases.append(answer.phase)
        taught.append(answer.taught)
        for camera in body.cameras:
            images[camera].append(observation.images[camera] if record else None)
        env.step(executed[-1])
        # As meant: if a flip put off the end, every episode's last steps would be free of flips.
        opens = body.gripper is not None and meant[body.gripper] < 0
        open_for = open_for + 1 if opens and success_step is not None else 0
        if success_step is None and env.success():
            success_step = len(actions)

    final = success_step is not None and _holds_after_release(env, released=open_for >= OPEN_STEPS)
    return Episode(
        key=spec.key,
        instruction=env.instruction,
        proprio=np.stack(proprio),
        actions=np.stack(actions),
        executed=np.stack(executed),
        phases=tuple(phases),
        images={camera: tuple(frames) for camera, frames in images.items()},
        success_step=success_step,
        success_final=final,
        budget=budget,
        embodiment=body,
        taught=None if all(taught) else np.array(taught),
    )


def _is_holding(body: Embodiment, steps_since_success: int, open_for: int) -> bool:
    """Whether the gripper may still hold what the goal was reached with."""
    return body.gripper is not None and open_for < OPEN_STEPS and steps_since_success < RELEASE_STEPS


def _holds_after_release(env: Env, released: bool) -> bool:
    """Whether the goal is still true once everything has been let go of and has come to rest."""
    body = env.embodiment
    if body.gripper is not None and not released:
        let_go = np.zeros(body.action_dim, np.float32)
        let_go[body.gripper] = -1
        for _ in range(OPEN_STEPS):
            env.step(let_go)
    return env.success()


def check_observation(observation: Observation, body: Embodiment) -> None:
    """Raises ValueError when an environment shows something else than its embodiment says."""
    if observation.proprio.shape != (body.proprio_dim,):
        raise ValueError(f"proprioception of shape {observation.proprio.shape}, the embodiment says {body.proprio_dim}")
    if observation.images and set(observation.images) != set(body.cameras):
        raise ValueError(f"images of {sorted(observation.images)}, the embodiment says {sorted(body.cameras)}")


def check_action(action: np.ndarray, body: Embodiment) -> np.ndarray:
    """[A] float32 clipped to [-1, 1]; a NaN or a wrong shape is the policy's bug and stops the run."""
    action = np.asarray(action, np.float32)
    if action.shape != (body.action_dim,) or not np.isfinite(action).all():
        raise ValueError(f"the policy returned an unusable action: shape {action.shape}, values {action}")
    return np.clip(action, -1, 1)
