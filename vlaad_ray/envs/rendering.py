"""Rendering of a LIBERO scene: pixel-identical to LIBERO's own, or several times quicker for students trained on it.

Rendering is 95 % of a LIBERO control step and bound by geometry (250,000-400,000 triangles of scanned objects, for
128-pixel images). The fast mode draws a copy of the model, so physics never changes, and in that copy

- merges mesh vertices closer than `MERGE_CELL` and drops the triangles that vanish,
- turns reflections and multisampling off,
- skips geoms outside the camera's view.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import mujoco
import numpy as np

from vlaad_ray.envs import egl
from vlaad_ray.types import LIBERO

MUJOCO_CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
MERGE_CELL = 0.003
"""m. Halves the render time, for 0.2/255 more change than switching reflections off makes (docs/experiments.md)."""
COLLISION_GROUP, HIDDEN_GROUP = 0, 5


class SceneRenderer:
    """Draws both cameras of one model. Owns a GL context: create it in the process that uses it, and close it."""

    def __init__(self, model: mujoco.MjModel, image_size: int, fast: bool):
        self._model = copy.copy(model)
        buffer = self._model.vis.global_
        buffer.offwidth, buffer.offheight = max(buffer.offwidth, image_size), max(buffer.offheight, image_size)
        if fast:
            merge_vertices(self._model, MERGE_CELL)
            self._model.mat_reflectance[:] = 0
            self._model.vis.quality.offsamples = 0
        # Culling by the camera's view is exact unless something out of sight shows in a reflection.
        self._cull = not self._model.mat_reflectance.any()
        self._groups = self._model.geom_group.copy()
        self._options = mujoco.MjvOption()
        self._options.geomgroup[COLLISION_GROUP] = 0
        egl.choose_device()
        self._renderer = mujoco.Renderer(self._model, image_size, image_size)

    def render(self, data: mujoco.MjData) -> Mapping[str, np.ndarray]:
        """Camera name -> [H, W, 3] uint8, upright: LIBERO's own observation flipped vertically."""
        return {camera: self._render_camera(data, MUJOCO_CAMERAS[camera]) for camera in LIBERO.cameras}

    def close(self) -> None:
        self._renderer.close()

    def _render_camera(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        if self._cull:
            self._model.geom_group[:] = np.where(geoms_in_view(self._model, data, camera), self._groups, HIDDEN_GROUP)
        self._renderer.update_scene(data, camera, scene_option=self._options)
        return self._renderer.render().copy()


def geoms_in_view(model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> np.ndarray:
    """[ngeom] bool: bounding sphere touches the viewing pyramid of a square image. Unbounded geoms always do."""
    camera_id = model.camera(camera).id
    half_angle = np.deg2rad(model.cam_fovy[camera_id]) / 2
    position = (data.geom_xpos - data.cam_xpos[camera_id]) @ data.cam_xmat[camera_id].reshape(3, 3)
    radius = model.geom_rbound + 1e-3
    depth = -position[:, 2]
    sideways = np.abs(position[:, :2]) * np.cos(half_angle) - (depth * np.sin(half_angle))[:, None]
    return ((depth > -radius) & (sideways < radius[:, None]).all(axis=1)) | (model.geom_rbound <= 0)


def merge_vertices(model: mujoco.MjModel, cell: float) -> None:
    """Simplify every mesh of `model` in place by vertex clustering (Rossignac and Borrel 1993).

    Vertices in one cubic cell of side `cell` (m) become one of them; triangles left with less than three distinct
    corners, or that repeat another, are dropped. For drawing only: collision hulls were built when the model was.
    """
    for mesh in range(model.nmesh):
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        vertices = model.mesh_vert[first : first + count]
        cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
        _, representative, member = np.unique(cells, axis=0, return_index=True, return_inverse=True)

        start, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        merged = representative[member.ravel()[model.mesh_face[start : start + faces]]]
        corners = np.sort(merged, axis=1)
        distinct = np.flatnonzero((corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]))
        _, unique = np.unique(corners[distinct], axis=0, return_index=True)
        keep = distinct[np.sort(unique)]
        if len(keep) == 0:
            continue  # smaller than a cell: leave it whole
        end = start + len(keep)
        model.mesh_face[start:end] = merged[keep]
        model.mesh_facenormal[start:end] = model.mesh_facenormal[start + keep]
        model.mesh_facetexcoord[start:end] = model.mesh_facetexcoord[start + keep]
        model.mesh_facenum[mesh] = len(keep)
