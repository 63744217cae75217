"""What the expert sees: a read-only view on the simulator as points, boxes, joints and contacts.

Positions are in the simulator's world frame (m). Rotations are [3, 3] matrices whose columns are the hand's axes:
x the direction in which the fingers close, z the direction in which they point.
"""

from __future__ import annotations

import mujoco
import numpy as np

from vlaad_ray.envs.libero import LiberoEnv

HAND_DOWN = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
"""Fingers point down and close along the world's y axis: the hand's attitude at the start of every episode."""
POINT_SPACING = 0.02
"""m, between the points that stand for a geom's surface."""
CELL = 0.01
"""m, side of a cell of a height map."""

ROBOT_PREFIXES = ("robot0", "gripper0", "mount0")


class Scene:
    """The simulator's present state. Everything is read when asked; only shapes are cached."""

    def __init__(self, env: LiberoEnv):
        self.problem = env.problem
        self.model, self.data = env.model, env.data
        self._hand = self.model.site("gripper0_grip_site").id
        self._fingers = [self.subtree(self.model.body(f"gripper0_{side}finger").id) for side in ("left", "right")]
        self.base = self.data.xpos[self.model.body("robot0_base").id].copy()
        joints = self.problem.robots[0]._ref_gripper_joint_pos_indexes
        self._finger_joints = list(joints)
        names = [self.model.body(i).name for i in range(self.model.nbody)]
        self._robot = {i for i, name in enumerate(names) if name.startswith(ROBOT_PREFIXES)}
        solid = (self.model.geom_contype > 0) | (self.model.geom_conaffinity > 0)
        self._solid_geoms: dict[int, list[int]] = {}
        for geom in np.flatnonzero(solid):
            self._solid_geoms.setdefault(int(self.model.geom_bodyid[geom]), []).append(int(geom))
        self._surfaces: dict[int, np.ndarray] = {}

    # --- the hand

    @property
    def hand(self) -> np.ndarray:
        """[3] position of the point between the fingertips."""
        return self.data.site_xpos[self._hand].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """[3, 3]"""
        return self.data.site_xmat[self._hand].reshape(3, 3).copy()

    @property
    def hand_velocity(self) -> np.ndarray:
        """[3] m/s"""
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_SITE, self._hand, velocity, 0)
        return velocity[3:]

    @property
    def opening(self) -> float:
        """Distance between the finger pads, m: 0 closed, 0.08 open."""
        return float(np.abs(self.data.qpos[self._finger_joints]).sum())

    def fingers_touching(self, bodies: set[int]) -> int:
        """How many of the two fingers touch any of `bodies`."""
        contact = self.data.contact
        near = contact.dist < 0.001
        pairs = self.model.geom_bodyid[contact.geom[near]]
        return sum(
            any((a in finger and b in bodies) or (b in finger and a in bodies) for a, b in pairs)
            for finger in self._fingers
        )

    # --- objects, fixtures and regions

    def is_region(self, name: str) -> bool:
        return name in self.problem.object_sites_dict

    def region_parent(self, region: str) -> str | None:
        """The object or fixture that a region belongs to; None for a patch of the table."""
        parent = self.problem.object_sites_dict[region].parent_name
        return parent if parent in self.problem.obj_body_id else None

    def region_size(self, region: str) -> np.ndarray:
        """[3] half extents along the region's own axes, m."""
        return np.asarray(self.problem.object_sites_dict[region].size, float)

    def region_half(self, region: str) -> np.ndarray:
        """[3] half extents along the world's axes, as LIBERO's predicates take them, m."""
        return np.abs(self.region_axes(region) @ self.region_size(region))

    def region_axes(self, region: str) -> np.ndarray:
        """[3, 3]"""
        return self.data.site_xmat[self.model.site(region).id].reshape(3, 3).copy()

    def position(self, name: str) -> np.ndarray:
        """[3] origin of an object's body, or of a region: the points that LIBERO's predicates compare."""
        if self.is_region(name):
            return self.data.site_xpos[self.model.site(name).id].copy()
        return self.data.xpos[self.problem.obj_body_id[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """[3, 3] attitude of an object's body."""
        return self.data.xmat[self.problem.obj_body_id[name]].reshape(3, 3).copy()

    def in_hand(self, name: str) -> np.ndarray:
        """[3] origin of an object's body in the hand's frame: constant while it is held."""
        return self.hand_rotation.T @ (self.position(name) - self.hand)

    def bodies(self, name: str) -> set[int]:
        return self.subtree(self.problem.obj_body_id[name])

    def subtree(self, root: int) -> set[int]:
        found = {root}
        for body in range(root + 1, self.model.nbody):
            if self.model.body_parentid[body] in found:
                found.add(body)
        return found

    def points(self, bodies: set[int]) -> np.ndarray:
        """[N, 3] points on the collision surfaces of `bodies`."""
        clouds = [self._geom_points(geom) for body in sorted(bodies) for geom in self._solid_geoms.get(body, ())]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))

    def object_points(self, name: str) -> np.ndarray:
        return self.points(self.bodies(name))

    def box(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner [3] of an object's bounding box."""
        points = self.object_points(name)
        return points.min(axis=0), points.max(axis=0)

    def obstacles(self, *without: str) -> np.ndarray:
        """[N, 3] points of all that is neither robot nor one of the named objects."""
        free = set().union(*(self.bodies(name) for name in without)) if without else set()
        return self.points(set(range(1, self.model.nbody)) - self._robot - free)

    # --- joints of fixtures

    def region_joint(self, name: str) -> int:
        """Joint that opens a region (drawer) or fixture (door, knob). ValueError if it has none."""
        thing = self.problem.object_sites_dict[name] if self.is_region(name) else self.problem.get_object(name)
        if not thing.joints:
            raise ValueError(f"{name} has no joint")
        return int(self.model.joint(thing.joints[0]).id)

    def has_joint(self, name: str) -> bool:
        thing = self.problem.object_sites_dict[name] if self.is_region(name) else self.problem.get_object(name)
        return bool(thing.joints)

    def joint_value(self, joint: int) -> float:
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def joint_axis(self, joint: int) -> np.ndarray:
        return self.data.xaxis[joint].copy()

    def joint_anchor(self, joint: int) -> np.ndarray:
        return self.data.xanchor[joint].copy()

    def joint_frame(self, joint: int) -> np.ndarray:
        """[3, 3] attitude of the body that a joint moves."""
        return self.data.xmat[self.model.jnt_bodyid[joint]].reshape(3, 3).copy()

    def joint_bodies(self, joint: int) -> set[int]:
        return self.subtree(int(self.model.jnt_bodyid[joint]))

    def holds(self, goal: list[str]) -> bool:
        """Whether one goal predicate is true now."""
        return bool(self.problem._eval_predicate(goal))

    def _geom_points(self, geom: int) -> np.ndarray:
        if geom not in self._surfaces:
            self._surfaces[geom] = surface_points(self.model, geom)
        return self._surfaces[geom] @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]


class HeightMap:
    """Highest obstacle in each horizontal cell of side CELL."""

    def __init__(self, points: np.ndarray):
        """points: [N, 3]"""
        cells, index = np.unique(np.floor(points[:, :2] / CELL).astype(int), axis=0, return_inverse=True)
        self._centres = (cells + 0.5) * CELL
        self._tops = np.full(len(cells), -np.inf)
        np.maximum.at(self._tops, index.ravel(), points[:, 2])

    def clearance(self, start: np.ndarray, end: np.ndarray, radius: float) -> float:
        """Height (m) that something of `radius` at `start` must have, bound for `end` in a straight line.

        Obstacles ahead count less with distance (1 m/m: as steep as the hand can climb while it moves), those
        aside of the way less still, so the result is continuous in the state.
        """
        way = end[:2] - start[:2]
        length = np.linalg.norm(way)
        direction = way / max(length, 1e-6)
        relative = self._centres - start[:2]
        along = np.clip(relative @ direction, 0, length)
        aside = np.linalg.norm(relative - along[:, None] * direction, axis=1)
        return float((self._tops - np.maximum(along - radius - 0.03, 0) - 3 * np.maximum(aside - radius, 0)).max())


def surface_points(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """[N, 3] points on a geom's surface in its own frame. Planes have none."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    shape = mujoco.mjtGeom
    if kind == shape.mjGEOM_MESH:
        return mesh_points(model, int(model.geom_dataid[geom]))
    if kind == shape.mjGEOM_BOX:
        axes = [np.linspace(-s, s, int(np.clip(2 * s / POINT_SPACING, 1, 60)) + 1) for s in size]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return grid[(np.abs(grid) > size - 1e-9).any(axis=1)]
    if kind in (shape.mjGEOM_CYLINDER, shape.mjGEOM_CAPSULE):
        half = size[1] + (size[0] if kind == shape.mjGEOM_CAPSULE else 0)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return np.array(
            [[size[0] * np.cos(a), size[0] * np.sin(a), z] for z in np.linspace(-half, half, 7) for a in angles]
        )
    if kind in (shape.mjGEOM_SPHERE, shape.mjGEOM_ELLIPSOID):
        ways = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3), axis=-1).reshape(-1, 3)
        ways = ways[np.linalg.norm(ways, axis=1) > 1e-6]
        radii = size if kind == shape.mjGEOM_ELLIPSOID else np.full(3, size[0])
        return ways / np.linalg.norm(ways, axis=1, keepdims=True) * radii
    return np.zeros((0, 3))


def mesh_points(model: mujoco.MjModel, mesh: int) -> np.ndarray:
    """[N, 3]: a mesh's vertices, and points on faces larger than POINT_SPACING (a crate has eight vertices)."""
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[first : first + count].astype(float)
    if count > 400:
        return vertices[:: count // 400 + 1]
    faces = model.mesh_face[model.mesh_faceadr[mesh] : model.mesh_faceadr[mesh] + model.mesh_facenum[mesh]]
    corners = vertices[faces]
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    pieces = np.clip(np.ceil(sides / POINT_SPACING), 1, 16).astype(int)
    clouds = [vertices]
    for n in np.unique(pieces[pieces > 1]):
        weights = np.array([[i, j, n - i - j] for i in range(n + 1) for j in range(n + 1 - i)]) / n
        clouds.append((weights @ corners[pieces == n]).reshape(-1, 3))
    return np.concatenate(clouds)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """[3] axis times angle (rad) of a rotation matrix."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """[3, 3] rotation by `angle` (rad) about a unit axis."""
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(axis, float), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def angle_between(one: np.ndarray, other: np.ndarray) -> float:
    """rad, between two attitudes."""
    return float(np.linalg.norm(rotation_vector(one @ other.T)))


def closing_along(direction: np.ndarray) -> tuple[np.ndarray, float]:
    """Hand pointing down that closes along a horizontal `direction`, and its yaw (rad) from HAND_DOWN.

    The fingers are alike, so a yaw and its opposite are the same grasp. Of the two, the one in [-1.2, 1.94): it keeps
    the wrist off its stop, and no usual attitude of LIBERO's objects lies near the ends, where the choice would flip.
    """
    yaw = (np.arctan2(direction[1], direction[0]) - np.pi / 2 + 1.2) % np.pi - 1.2
    return rotation_about(np.array([0, 0, 1.0]), yaw) @ HAND_DOWN, float(yaw)
